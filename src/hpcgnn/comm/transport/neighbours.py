"""The ranks that share a node, and a test of whether they can read each other's GPU memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.comm.channel import ring_order
from hpcgnn.comm.transport.shared import CudaMemory, Region
from hpcgnn.system import machine

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

_SIZES = (4 << 10, 8 << 20)  # bytes that are read in the test
_WHERE = "choose transport"


def of_all(comm: Communicator) -> list[frozenset[int]]:
    """Return for each rank the ranks of its node, itself included. Collective."""
    nodes = comm.allgather(machine(), where=_WHERE)
    return [frozenset(r for r, other in enumerate(nodes) if other == own) for own in nodes]


def why_not(comm: Communicator, memory: CudaMemory | None, near: frozenset[int]) -> str:
    """Return why some rank can't read a neighbour's GPU memory; empty if all can. Collective.

    Every rank reads 4 KiB and 8 MiB that each neighbour has written.

    Args:
        memory: None if CuPy is not installed.
        near: the ranks of this node.
    """
    region, own = None, "CuPy is not installed"
    if memory is not None:
        region, own = _written(memory, comm.rank)
    told = comm.allgather((own, b"" if region is None else region.handle), where=_WHERE)
    problem = _first([text for text, _ in told])
    if memory is not None and not problem:
        peers = [peer for peer in ring_order(comm.rank, comm.size, -1) if peer in near]
        found = [_read(memory, peer, told[peer][1]) for peer in peers]
        problem = _first(comm.allgather(next(filter(None, found), ""), where=_WHERE))
    if memory is not None and region is not None:
        memory.free(region)
    return problem


def _first(problems: list[str]) -> str:
    found = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
    return found[0] if found else ""


def _written(memory: CudaMemory, rank: int) -> tuple[Region | None, str]:
    try:
        region = memory.allocate(0, _SIZES[-1])
        region.memory[: _SIZES[-1]].copy_(_pattern(rank, _SIZES[-1], memory.device))
        memory.wait()
    except RuntimeError as error:
        return None, " ".join(str(error).split())
    return region, ""


def _read(memory: CudaMemory, peer: int, handle: bytes) -> str:
    """Return what failed when reading a neighbour's memory, or an empty string."""
    try:
        address, problem = memory.open(handle), ""
        for size in _SIZES:
            got = torch.zeros(size, dtype=torch.uint8, device=memory.device)
            memory.read(got, address)
            memory.wait()
            if not torch.equal(got, _pattern(peer, size, memory.device)):
                problem = problem or f"{size} bytes of rank {peer} were read incorrectly"
        memory.close(address)
    except RuntimeError as error:
        return f"the memory of rank {peer} can't be read: {' '.join(str(error).split())}"
    return problem


def _pattern(rank: int, size: int, device: torch.device) -> Tensor:
    numbers = torch.arange(size // 4, dtype=torch.int32, device=device) * 3 + rank
    return numbers.view(torch.uint8)
