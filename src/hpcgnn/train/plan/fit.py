"""A warning before a run that its machines may lack memory for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device import pick_device
from hpcgnn.comm.shortage import Shortage, shortage
from hpcgnn.errors import InputError, warning
from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import estimate
from hpcgnn.train.plan.file_shapes import shapes_of_file

Need = tuple[int, int]  # bytes of the largest part, and of a part of mean size


def warn_if_short(path: Path, comm: Communicator, config: Config) -> None:
    """Print a warning on rank 0 if the estimated memory is more than what is free. Collective.

    The system would kill a rank without a word. Nothing is said of a user's model, of unknown
    memory, and on GPUs, whose errors say what they lack.

    Args:
        path: the partition to be loaded, or a graph on one rank.
    """
    if config.model.own or pick_device(comm, config.device.kind).type == "cuda":
        return
    needs: list[Need] = []
    if comm.rank == 0:
        with suppress(InputError):  # that training will report
            needs = _needs(path, comm.size, config)
    short = [shortage(comm, need[comm.rank > 0]) for need in comm.broadcast(needs, where="memory")]
    if short and short[0] is not None and comm.rank == 0:
        warning(_text(short[0], enough=short[1] is None))


def _needs(path: Path, ranks: int, config: Config) -> list[Need]:
    """Return what the run needs with these settings, and without a kept first sum."""
    shape_at, _, _ = shapes_of_file(path, config)
    shape = shape_at(ranks)
    found = []
    for settings in (config, config.changed(cache_first=False)):
        found.append((estimate(shape, settings).peak, estimate(shape.mean(), settings).peak))
    return found


def _text(short: Shortage, *, enough: bool) -> str:
    """Return the line; `enough`: there is memory for a run without a kept first sum."""
    advice = "--recompute, --keep-in bf16, a smaller --hidden and more machines need less"
    if enough:
        advice = "there is enough with --no-cache-first, with which epochs take longer"
    return (
        f"the ranks are estimated to need {short}, and may be killed for lack of memory: {advice} "
        "(see `hpcgnn plan`)"
    )
