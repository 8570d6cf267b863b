"""Checks when a run is resumed: settings that define it must not change, others may."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, counted, is_out_of_memory, warning
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.settings import DEFINING, TOLD, flag
from hpcgnn.tasks.links import STORED_LATER
from hpcgnn.tasks.settings import IN_LOSS
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.store import BEST, CheckpointStore
from hpcgnn.train.config import Config, options
from hpcgnn.train.journal import json_lines
from hpcgnn.train.optimisation import learning_rate

_STEPS = ("step_size", "gamma")  # used by the step schedule only
_UNUSABLE = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
)


def newest_of_run(
    store: CheckpointStore, graph: PartitionedGraph, config: Config
) -> tuple[Path, Checkpoint] | None:
    """Return the newest intact checkpoint and its file; None if there is none. Collective.

    Raises:
        InputError: it is of another graph, or a setting that defines the run differs.
    """
    found = store.newest()
    if found is None:
        return None
    path, checkpoint = found
    _check_graph(checkpoint, graph, path)
    with agreed(graph.comm, "starts.jsonl"):
        if graph.comm.rank == 0:
            _check_ranks(store.folder.parent / "starts.jsonl", checkpoint.num_parts, path)
    changes = check_resumed(checkpoint.config, config, path, checkpoint.epoch)
    if changes and graph.ring.comm.rank == 0:
        warning(f"{path}: {changes}")
    with agreed(graph.comm, "best checkpoint"):
        if graph.comm.rank == 0 and (best := store.best_of(checkpoint)) is not None:
            _check_graph(best, graph, store.folder / BEST)
            check_resumed(best.config, config, store.folder / BEST, best.epoch)
    return found


def _check_graph(checkpoint: Checkpoint, graph: PartitionedGraph, path: Path) -> None:
    if checkpoint.graph_fingerprint != graph.graph_fingerprint:
        raise InputError(
            f"belongs to another graph ({checkpoint.graph_fingerprint}, not "
            f"{graph.graph_fingerprint}); choose another --run-dir",
            file=path,
        )


def _check_ranks(starts: Path, num_parts: int, path: Path) -> None:
    """Refuse a checkpoint of a number of ranks that no recorded start of the run had."""
    ranks: set[int] = set()
    with suppress(FileNotFoundError):
        ranks = {
            line["ranks"] for line in json_lines(starts) if line and type(line.get("ranks")) is int
        }
    if ranks and num_parts not in ranks:
        raise InputError(
            f"was written by {counted(num_parts, 'rank')}, and this run was never started on that "
            f"many ({starts.name}): restore the run's own checkpoint, or choose another --run-dir",
            file=path,
            dataset="num_parts",
            value=num_parts,
        )


def check_resumed(former: Config, now: Config, path: Path, epoch: int) -> str:
    """Refuse settings of another run; return a text about changes that are allowed, or "".

    Args:
        former: the settings that the checkpoint `path` was written with, after `epoch`.
        now: those of the run that is resumed.

    Raises:
        InputError: a setting that defines the run differs.
    """
    changed = _changed(former, now, DEFINING)
    if former.training.monitor in ("loss", "valid_loss"):  # else the best would be of another loss
        changed += [name for name in _changed(former, now, TOLD) if name in IN_LOSS]
    if changed:
        raise InputError(
            f"was trained with {_options(former, changed)}, not {_options(now, changed)}: use the "
            "former values, or choose another --run-dir",
            file=path,
        )
    return _told(former, now, epoch)


def check_task(checkpoint: Checkpoint, now: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another task than `now`, see `Task.stored`; older ones lack the task.

    Raises:
        InputError: kind, metric or anything else differs, or is stored in only one of both.
    """
    known, own = (
        {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
        for facts in (checkpoint.task, now)
    )
    complete = "kind" in known
    for name in sorted(own.keys() | known.keys() if complete else own.keys() & known.keys()):
        if name in STORED_LATER and name not in known:
            continue
        then, later = (facts.get(name, "nothing")[:80] for facts in (known, own))
        if then != later:
            raise InputError(
                f"was trained on another task ({name} {then}, not {later}); choose "
                "another --run-dir",
                file=path,
            )


@contextmanager
def usable(path: Path | None) -> Iterator[None]:
    """Turn exceptions in the first use of restored state into InputError within the context.

    Only the optimizer or scheduler that uses the state knows which values are valid.

    Args:
        path: the checkpoint; None: nothing was restored.

    Raises:
        InputError: instead of an exception that the state causes.
    """
    try:
        yield
    except _UNUSABLE as error:
        if path is None or is_out_of_memory(error):
            raise
        raise InputError(
            f"its state of optimizer, rates or callbacks can't be used: {type(error).__name__}: "
            f"{str(error)[:200]}",
            file=path,
        ) from error


def _told(former: Config, now: Config, epoch: int) -> str:
    changed = _changed(former, now, TOLD)
    schedules = {former.optimiser.schedule, now.optimiser.schedule}
    if "step" not in schedules:
        changed = [name for name in changed if name not in _STEPS]
    if "cosine" in schedules and former.training.epochs != now.training.epochs:
        changed.append("epochs")
    if not changed:
        return ""
    text = f"continues with {_options(now, changed)} instead of {_options(former, changed)}"
    following = learning_rate(now, epoch + 1)
    if following != learning_rate(former, epoch + 1):
        text += f": the learning rate was {learning_rate(former, epoch):.4g} in epoch {epoch}, "
        text += f"and is {following:.4g} in epoch {epoch + 1}"
    return text


def _changed(former: Config, now: Config, kind: str) -> list[str]:
    then, later = former.flat(), now.flat()
    return [
        option
        for option, place in options().items()
        if place.setting.resume == kind and then[option] != later[option]
    ]


def _options(config: Config, names: list[str]) -> str:
    values = config.flat()
    return " ".join(_option(name, values[name]) for name in names)


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value}"
