"""Partitions by ParMETIS over all ranks, however the rows of the graph lie."""

from __future__ import annotations

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.problem import Problem, symmetrise
from hpcgnn.partition.pyparmetis import binding
from hpcgnn.partition.routing import Slabs
from hpcgnn.partition.sorting import Array

_ROWS_PER_CALLER = 64


def parmetis_parts(comm: Communicator, problem: Problem) -> Array:
    """The part of each row of the slab, int32. All ranks call.

    ParMETIS refuses ranks without rows, so only the first ranks call it where rows are few, and
    rows move to where they are needed.

    Raises:
        InputError: no library, one that doesn't fit, or a graph too large for it.
    """
    library = binding.load(comm)
    if problem.options.balance_train and not library.can_balance_several:
        raise InputError(
            "PT-Scotch balances one weight only: leave out --train-balance", file=library.path
        )
    slabs = Slabs(comm, problem.slab.lo, problem.slab.hi, problem.num_nodes)
    callers = max(1, min(comm.size, problem.num_nodes // _ROWS_PER_CALLER))
    bounds = np.concatenate([[0], slabs.ends])
    if (np.diff(bounds) == 0).any() or callers < comm.size:
        cuts = problem.num_nodes * np.arange(callers + 1) // callers
        bounds = np.append(cuts, np.full(comm.size - callers, problem.num_nodes))
    low, high = int(bounds[comm.rank]), int(bounds[comm.rank + 1])

    slab = problem.slab
    xadj, adjncy = symmetrise(comm, slab.lo, slab.indptr, slab.indices, bounds)
    weights = [slabs.lookup(np.arange(low, high), problem.cost)]
    if problem.options.balance_train and comm.allreduce(int(problem.train.sum())) > 0:
        weights.append(slabs.lookup(np.arange(low, high), problem.train.astype(np.int64)))
    rows = binding.Rows(bounds[: callers + 1], xadj, adjncy, np.stack(weights, axis=1))
    part = _call(comm, library, rows, callers, problem)
    return Slabs(comm, low, high, problem.num_nodes).lookup(np.arange(slab.lo, slab.hi), part)


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
                for _ in range(problem.options.refine):
                    part = library.refine_kway(
                        sub.mpi, rows, part, parts, imbalance=imbalance, seed=seed
                    )
    if sub is not None and sub is not comm:
        sub.close()
    return part
