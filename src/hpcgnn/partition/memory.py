"""Whether a method fits the memory of the machines: estimated before it is called."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from hpcgnn.comm.communicator import Communicator
from hpcgnn.system import available_memory

COMPRESSED = 1 << 27  # neighbours from which KaMinPar keeps its graph compressed
_MOST_EVERYWHERE = 20.0  # integers per neighbour and rank: the whole graph, and what belongs to it


def parmetis_bytes(neighbours: int, skew: float, ranks: int, index_bytes: int) -> float:
    """What ParMETIS takes on each rank beside the graph it is given.

    Integers per neighbour, fitted to seven graphs on 1 to 8 ranks (`jobs/parmetis_memory.py`): the
    coarser graphs of all levels; and on each rank the coarsest, large where degrees are skewed,
    since hubs leave their neighbours unmatched. More ranks share the first part only.

    Args:
        neighbours: entries of the symmetric graph.
        skew: mean square of the degrees over the square of their mean.
    """
    if ranks == 1:
        return 14.0 * neighbours * index_bytes
    everywhere = min(0.0105 * skew**2, _MOST_EVERYWHERE) * (ranks - 1)
    return (19.0 + everywhere) * neighbours * index_bytes / ranks


def kaminpar_bytes(num_nodes: int, neighbours: int) -> float:
    """What KaMinPar's process takes, the graph included, which it compresses above COMPRESSED."""
    per_neighbour = 8.0 if neighbours >= COMPRESSED else 20.0
    return 5e7 + 100.0 * num_nodes + per_neighbour * neighbours


@dataclass(frozen=True)
class Shortage:
    """A machine on which all its ranks need more bytes than there are."""

    host: str
    needed: int
    available: int

    def ranks(self, size: int) -> int:
        """How many ranks would do, as many on each machine as now."""
        return -(-size * self.needed // max(self.available, 1))

    def __str__(self) -> str:
        return (
            f"{self.needed / 2**30:,.1f} GiB on {self.host}, "
            f"where {self.available / 2**30:,.1f} GiB are free"
        )


def shortage(comm: Communicator, needed: float) -> Shortage | None:
    """The machine that falls most short, where each rank needs so many bytes. Collective."""
    own = socket.gethostname(), int(needed), available_memory()
    machines: dict[str, Shortage] = {}
    for host, bytes_, free in comm.allgather(own, where="memory of the machines"):
        before = machines.get(host, Shortage(host, 0, free))
        machines[host] = Shortage(host, before.needed + bytes_, min(before.available, free))
    worst = max(machines.values(), key=lambda one: one.needed / max(one.available, 1))
    return worst if worst.needed > worst.available else None
