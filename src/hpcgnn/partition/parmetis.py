"""Partitions by ParMETIS over all ranks, however the rows of the graph lie."""

from __future__ import annotations

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.edges import most_neighbours, neighbours
from hpcgnn.partition.problem import Problem, Shortage, parmetis_bytes, shortage
from hpcgnn.partition.pyparmetis import binding
from hpcgnn.partition.routing import Array, Int64, Slabs

_ROWS_PER_CALLER = 64
_NARROW = 2**31 - 1


def is_narrow(comm: Communicator, problem: Problem) -> bool:
    """Whether all counts and weights of the graph add up within 32 bits. Collective."""
    totals = comm.allreduce(np.array([2 * problem.edges.count, int(problem.cost.sum())]))
    return max(int(totals.max()), problem.num_nodes) <= _NARROW


def parmetis_shortage(comm: Communicator, problem: Problem, index_bytes: int) -> Shortage | None:
    """The machine whose memory falls most short of what ParMETIS will need; None: it fits.

    Collective. Counted are the graph as it is handed over and what the library takes beside it.
    """
    degree = np.diff(problem.edges.indptr).astype(float)
    count, squares = comm.allreduce(np.array([degree.sum(), (degree**2).sum()]))
    skew = squares * problem.num_nodes / max(count, 1) ** 2
    given = index_bytes * (2 * int(count) + 3 * problem.num_nodes) / comm.size
    most = most_neighbours(comm, problem.edges)
    used = parmetis_bytes(most, skew, comm.size, index_bytes)
    return shortage(comm, given + used)


def parmetis_parts(comm: Communicator, problem: Problem) -> Array:
    """The part of each row of the slab, int32. All ranks call.

    ParMETIS refuses ranks without rows, so only the first ranks call it where rows are few, and
    rows move to where they are needed.

    Raises:
        InputError: no library, one that doesn't fit, a graph too large for it or for the memory.
    """
    library = binding.load(comm, narrow=is_narrow(comm, problem))
    if problem.options.balance_train and not library.can_balance_several:
        raise InputError(
            "PT-Scotch balances one weight only: leave out --train-balance", file=library.path
        )
    short = parmetis_shortage(comm, problem, library.index_bytes)
    if short is not None:
        raise InputError(
            f"ParMETIS would need about {short}: start at least {short.ranks(comm.size)} ranks, no "
            f"more on each machine than now, {binding.OTHERWISE}"
        )
    slabs = Slabs(comm, problem.edges.lo, problem.edges.hi, problem.num_nodes)
    bounds, callers = _bounds(comm, slabs, problem.num_nodes)
    low, high = int(bounds[comm.rank]), int(bounds[comm.rank + 1])
    own = np.arange(low, high)

    integer = np.dtype(library.integer).type
    weights = [slabs.lookup(own, problem.cost.astype(integer))]
    if problem.options.balance_train and comm.allreduce(int(problem.train.sum())) > 0:
        weights.append(slabs.lookup(own, problem.train.astype(integer)))
    xadj, adjncy = neighbours(comm, problem.edges, bounds, integer)
    rows = binding.Rows(
        bounds[: callers + 1], xadj, adjncy, np.stack(weights, axis=1), expendable=True
    )
    part = _call(comm, library, rows, callers, problem)
    return Slabs(comm, low, high, problem.num_nodes).lookup(np.arange(slabs.low, slabs.high), part)


def _bounds(comm: Communicator, slabs: Slabs, num_nodes: int) -> tuple[Int64, int]:
    """Who gives which rows to the library, `[size + 1]`, and how many ranks call it."""
    callers = max(1, min(comm.size, num_nodes // _ROWS_PER_CALLER))
    bounds = np.concatenate([[0], slabs.ends])
    if (np.diff(bounds) == 0).any() or callers < comm.size:
        cuts = num_nodes * np.arange(callers + 1) // callers
        bounds = np.append(cuts, np.full(comm.size - callers, num_nodes))
    return bounds, callers


def _call(
    comm: Communicator,
    library: binding.ParMETIS,
    rows: binding.Rows,
    callers: int,
    problem: Problem,
) -> Array:
    sub = comm.sub(range(callers)) if callers < comm.size else comm
    part = np.zeros(rows.num_rows, np.int32)
    parts, imbalance, seed = problem.num_parts, problem.options.imbalance, problem.options.seed
    with agreed(comm, "ParMETIS"):
        if sub is not None:
            with sub.blocking_call("ParMETIS"):
                part = library.part_kway(sub.mpi, rows, parts, imbalance=imbalance, seed=seed)
    if sub is not None and sub is not comm:
        sub.close()
    return part
