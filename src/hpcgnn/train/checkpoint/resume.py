"""What a run may be resumed with: the settings that define it stay, others may change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hpcgnn.config import DEFINING, TOLD, Config, flag
from hpcgnn.errors import InputError
from hpcgnn.train.optimisation import learning_rate

_STEPS = ("step_size", "gamma")  # only of the step schedule


def check_resumed(former: Config, now: Config, path: Path, epoch: int) -> str:
    """Refuse settings of another run; what to tell of those that may change, or an empty string.

    Args:
        former: the settings that the checkpoint `path` was written with, after `epoch`.
        now: those of the run that is to go on.

    Raises:
        InputError: a setting that defines the run differs.
    """
    changed = _changed(former, now, DEFINING)
    if changed:
        raise InputError(
            f"was trained with {_options(former, changed)}, not {_options(now, changed)}: say the "
            "former, or choose another --run-dir",
            file=path,
        )
    return _told(former, now, epoch)


def _told(former: Config, now: Config, epoch: int) -> str:
    changed = _changed(former, now, TOLD)
    schedules = {former.schedule, now.schedule}
    if "step" not in schedules:
        changed = [name for name in changed if name not in _STEPS]
    if "cosine" in schedules and former.epochs != now.epochs:
        changed.append("epochs")
    if not changed:
        return ""
    text = f"goes on with {_options(now, changed)} in place of {_options(former, changed)}"
    following = learning_rate(now, epoch + 1)
    if following != learning_rate(former, epoch + 1):
        text += f": the learning rate was {learning_rate(former, epoch):.4g} in epoch {epoch}, "
        text += f"and is {following:.4g} in epoch {epoch + 1}"
    return text


def _changed(former: Config, now: Config, kind: str) -> list[str]:
    return [
        entry.name
        for entry in dataclasses.fields(Config)
        if entry.metadata["resume"] == kind
        and getattr(former, entry.name) != getattr(now, entry.name)
    ]


def _options(config: Config, names: list[str]) -> str:
    return " ".join(_option(name, getattr(config, name)) for name in names)


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value}"
