"""The message when a rank runs out of memory: the amounts, and how many ranks would suffice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from hpcgnn.errors import OutOfMemoryError, human
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import estimate
from hpcgnn.train.plan.ranks import smallest_ranks
from hpcgnn.train.plan.shapes import largest_of, shape_of

_USABLE = 0.92  # of a GPU's memory; the rest is for the context and fragmentation
_REMEDY = (
    "--recompute, --keep-in bf16, --features-on host, --precision bf16 and a smaller --halo-buffer "
    "or --hidden need less"
)
_REQUEST = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@contextmanager
def explained(
    graph: PartitionedGraph, config: Config, device: torch.device, remedy: str = _REMEDY
) -> Iterator[None]:
    """Turn a lack of memory into a one-line error within the context.

    Args:
        remedy: options of the verb that need less GPU memory.

    Raises:
        OutOfMemoryError: what was asked for, what there was, and the rank count that would fit.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(_on_gpu(graph, config, device, str(error), remedy)) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        wanted = requested(str(error))
        raise OutOfMemoryError(
            f"rank {graph.ring.comm.rank} could not allocate {human(wanted)} of host memory; start "
            "more ranks on more machines, or see `hpcgnn plan`"
        ) from None


def _on_gpu(
    graph: PartitionedGraph, config: Config, device: torch.device, text: str, remedy: str
) -> str:
    wanted = requested(text)
    total = torch.cuda.get_device_properties(device).total_memory
    held = torch.cuda.memory_allocated(device)
    if config.model.own:  # its memory is unknown
        return (
            f"out of GPU memory: rank {graph.comm.rank} asked for {human(wanted)} with "
            f"{human(held)} in use of {human(total)}; start more ranks, or lower --halo-buffer"
        )
    needed = ranks_that_fit(graph, config, limit=int(_USABLE * total), lacked=held + wanted)
    return refusal(graph.ring.comm.rank, wanted, held, total, needed, remedy)


def refusal(
    rank: int, wanted: int, held: int, total: int, needed: int | None, remedy: str = _REMEDY
) -> str:
    """Return the line for the user."""
    advice = "no number of ranks would be enough"
    if needed is not None:
        advice = f"{needed} ranks with one GPU each would fit according to `hpcgnn plan`"
    return (
        f"out of GPU memory: rank {rank} asked for {human(wanted)} with {human(held)} in use of "
        f"{human(total)}; {advice}; {remedy}"
    )


def requested(text: str) -> int:
    """Return the bytes that torch failed to allocate; 0 if the message doesn't say."""
    found = _REQUEST.search(text)
    return 0 if found is None else int(float(found[1]) * _UNITS[found[2]])


def ranks_that_fit(
    graph: PartitionedGraph, config: Config, *, limit: int, lacked: int
) -> int | None:
    """Return the smallest rank count above this job's that needs at most `limit` bytes per rank.

    Args:
        lacked: bytes that this rank is known to need; a lower estimate is scaled up to it.
    """
    ranks = graph.ring.comm.size
    whole = shape_of(graph)
    known = estimate(largest_of(whole, ranks), config).peak
    scale = max(1.0, lacked / max(known, 1))
    return smallest_ranks(partial(largest_of, whole), config, int(limit / scale), ranks + 1)
