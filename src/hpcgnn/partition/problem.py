"""The input of every partition method, and whether it fits the memory of the machines."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import human
from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.options import PartitionOptions
from hpcgnn.partition.routing import Array, Int64
from hpcgnn.system import available_memory

COMPRESSED = 1 << 27  # neighbours from which on KaMinPar's graph is compressed
_MOST_EVERYWHERE = 20.0  # integers per neighbour and rank: the whole graph, and what belongs to it


@dataclass(frozen=True)
class Problem:
    """A graph in slabs, and the number of parts that it is to be cut into.

    edges: those of this rank's slab, rows `lo .. hi - 1`; the ranks' slabs are consecutive.
    cost, train: `[hi - lo]` int64 and bool, of the rows of this rank's slab.
    notes: lines about the run, which methods add on rank 0.
    """

    edges: SlabEdges
    num_nodes: int
    num_parts: int
    cost: Int64
    train: Array
    options: PartitionOptions
    notes: list[str] = field(default_factory=list)


def parmetis_bytes(neighbours: int, skew: float, ranks: int, index_bytes: int) -> float:
    """Return the bytes that ParMETIS needs on each rank beside its input graph.

    They are a number of integers per neighbour, fitted to seven graphs on 1 to 8 ranks
    (`jobs/parmetis_memory.py`): for the coarser graphs of all levels, and on each rank for the
    coarsest graph, which is large if degrees are skewed, since hubs leave their neighbours
    unmatched. Only the first term is shared by the ranks.

    Args:
        neighbours: number of entries of the symmetric graph.
        skew: mean square of the degrees over the square of their mean.
    """
    if ranks == 1:
        return 14.0 * neighbours * index_bytes
    everywhere = min(0.0105 * skew**2, _MOST_EVERYWHERE) * (ranks - 1)
    return (19.0 + everywhere) * neighbours * index_bytes / ranks


def kaminpar_bytes(num_nodes: int, neighbours: int) -> float:
    """Return the bytes of KaMinPar's process and graph, which is compressed from COMPRESSED on."""
    per_neighbour = 8.0 if neighbours >= COMPRESSED else 20.0
    return 5e7 + 100.0 * num_nodes + per_neighbour * neighbours


@dataclass(frozen=True)
class Shortage:
    """A machine whose ranks together need more bytes than are available."""

    host: str
    needed: int
    available: int

    def ranks(self, size: int) -> int:
        """Return how many ranks would suffice, with as many on each machine as now."""
        return -(-size * self.needed // max(self.available, 1))

    def __str__(self) -> str:
        return f"{human(self.needed)} on {self.host}, where {human(self.available)} are free"


def shortage(comm: Communicator, needed: float) -> Shortage | None:
    """Return the machine that lacks most memory for each rank's `needed` bytes, None if none does.

    Collective.
    """
    own = socket.gethostname(), int(needed), available_memory()
    machines: dict[str, Shortage] = {}
    for host, bytes_, free in comm.allgather(own, where="memory of the machines"):
        before = machines.get(host, Shortage(host, 0, free))
        machines[host] = Shortage(host, before.needed + bytes_, min(before.available, free))
    worst = max(machines.values(), key=lambda one: one.needed / max(one.available, 1))
    return worst if worst.needed > worst.available else None
