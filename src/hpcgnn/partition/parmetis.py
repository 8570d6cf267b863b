"""Partitions by ParMETIS over all ranks, for any distribution of the graph's rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.shortage import Shortage, shortage
from hpcgnn.errors import InputError
from hpcgnn.partition.edges import most_neighbours, neighbours
from hpcgnn.partition.problem import Problem, parmetis_bytes
from hpcgnn.partition.pyparmetis import binding, builds
from hpcgnn.partition.routing import Array, Int64, Slabs

_ROWS_PER_CALLER = 64
_NARROW = 2**31 - 1


def is_narrow(comm: Communicator, problem: Problem) -> bool:
    """Return whether all counts and weights of the graph add up within 32 bits. Collective."""
    totals = comm.allreduce(np.array([2 * problem.edges.count, int(problem.cost.sum())]))
    return max(int(totals.max()), problem.num_nodes) <= _NARROW


@dataclass(frozen=True)
class MemoryNeed:
    """The memory for ParMETIS's input graph and its own data, by the number of calling ranks."""

    num_nodes: int
    neighbours: int
    skew: float
    index_bytes: int

    @classmethod
    def of(cls, comm: Communicator, problem: Problem, index_bytes: int) -> MemoryNeed:
        """Return the need with integers of `index_bytes` bytes. Collective."""
        degree = np.diff(problem.edges.indptr).astype(float)
        count, squares = comm.allreduce(np.array([degree.sum(), (degree**2).sum()]))
        skew = squares * problem.num_nodes / max(count, 1) ** 2
        return cls(problem.num_nodes, most_neighbours(comm, problem.edges), skew, index_bytes)

    def bytes(self, callers: int) -> float:
        """Return the bytes needed on each of the calling ranks."""
        given = self.index_bytes * (self.neighbours + 3 * self.num_nodes) / callers
        return given + parmetis_bytes(self.neighbours, self.skew, callers, self.index_bytes)

    def shortage(self, comm: Communicator, callers: int) -> Shortage | None:
        """Return the machine that lacks most memory, None if the need fits. Collective."""
        calls = comm.rank in calling(comm.size, callers)
        return shortage(comm, self.bytes(callers) if calls else 0)


def calling(size: int, callers: int) -> list[int]:
    """Return the ranks that call the library: `callers` of `size`, spread over the machines."""
    return [size * k // callers for k in range(callers)]


def parmetis_parts(comm: Communicator, problem: Problem) -> Array:
    """Return the part of each row of the slab, int32. Collective.

    ParMETIS refuses ranks without rows, and its total memory grows with the number of calling
    ranks. If rows are few or memory is short, only some ranks call it, and rows are sent to these.

    Raises:
        InputError: no library is found, or one that can't be used, or the graph is too large for
            it or for the memory.
    """
    library = builds.load(comm, narrow=is_narrow(comm, problem))
    if problem.options.balance_train and not library.can_balance_several:
        raise InputError(
            "PT-Scotch balances only one weight: leave --train-balance out", file=library.path
        )
    most = max(1, min(comm.size, problem.num_nodes // _ROWS_PER_CALLER))
    callers = _fitting(comm, MemoryNeed.of(comm, problem, library.index_bytes), most)
    if callers < most:
        problem.notes.append(
            f"ParMETIS runs on {callers} of {comm.size} ranks: on more it would not fit into memory"
        )
    slabs = Slabs(comm, problem.edges.lo, problem.edges.hi, problem.num_nodes)
    bounds = _bounds(comm, slabs, callers)
    low, high = int(bounds[comm.rank]), int(bounds[comm.rank + 1])
    own = np.arange(low, high)

    integer = np.dtype(library.integer).type
    weights = [slabs.lookup(own, problem.cost.astype(integer))]
    if problem.options.balance_train and comm.allreduce(int(problem.train.sum())) > 0:
        weights.append(slabs.lookup(own, problem.train.astype(integer)))
    xadj, adjncy = neighbours(comm, problem.edges, bounds, integer)
    called = np.append(bounds[calling(comm.size, callers)], problem.num_nodes)
    rows = binding.Rows(called, xadj, adjncy, np.stack(weights, axis=1), expendable=True)
    del own, weights, xadj, adjncy
    part = _call(comm, library, rows, callers, problem)
    return Slabs(comm, low, high, problem.num_nodes).lookup(np.arange(slabs.low, slabs.high), part)


def _fitting(comm: Communicator, need: MemoryNeed, most: int) -> int:
    """Return how many ranks call the library: `most`, halved until memory fits. Collective."""
    callers, first = most, need.shortage(comm, most)
    short = first
    while short is not None and callers > 1:
        callers //= 2
        short = need.shortage(comm, callers)
    if first is not None and short is not None:
        raise InputError(
            f"ParMETIS would need about {first}: start at least {first.ranks(comm.size)} ranks, no "
            f"more on each machine than now, {binding.OTHERWISE}"
        )
    return callers


def _bounds(comm: Communicator, slabs: Slabs, callers: int) -> Int64:
    """Return the bounds of the rows that each rank gives to the library: int64 `[size + 1]`."""
    bounds, num_nodes = np.append(0, slabs.ends), int(slabs.ends[-1])
    if (np.diff(bounds) > 0).all() and callers == comm.size:
        return bounds
    before = np.searchsorted(calling(comm.size, callers), np.arange(comm.size + 1))
    return np.asarray(num_nodes * before // callers, np.int64)


def _call(
    comm: Communicator,
    library: binding.ParMETIS,
    rows: binding.Rows,
    callers: int,
    problem: Problem,
) -> Array:
    sub = comm.sub(calling(comm.size, callers)) if callers < comm.size else comm
    part = np.zeros(rows.num_rows, np.int32)
    parts, imbalance, seed = problem.num_parts, problem.options.imbalance, problem.options.seed
    with agreed(comm, "ParMETIS"):
        if sub is not None:
            with sub.blocking_call("ParMETIS"):
                part = library.part_kway(sub.mpi, rows, parts, imbalance=imbalance, seed=seed)
    if sub is not None and sub is not comm:
        sub.close()
    return part
