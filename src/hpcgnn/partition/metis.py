"""Partitions by METIS on one rank, through the package pymetis."""

from __future__ import annotations

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.problem import Problem, symmetrise
from hpcgnn.partition.routing import Slabs
from hpcgnn.partition.sorting import Array

_LIMIT = 2**31 - 1


def metis_parts(comm: Communicator, problem: Problem) -> Array:
    """The part of each row of the slab: int32. The whole graph goes to rank 0.

    Raises:
        InputError: pymetis is not installed, or the graph is beyond its 32-bit counts.
    """
    slab, options = problem.slab, problem.options
    if options.balance_train:
        raise InputError("pymetis balances one weight only: leave out --train-balance")
    sizes = comm.allreduce(np.array([2 * len(slab.indices), int(problem.cost.sum())]))
    if sizes.max() > _LIMIT:
        raise InputError(
            f"{sizes[0] // 2} edges are too many for pymetis's 32 bits: choose --method parmetis"
        )
    bounds = np.full(comm.size + 1, problem.num_nodes)
    bounds[0] = 0
    xadj, adjncy = symmetrise(comm, slab.lo, slab.indptr, slab.indices, bounds)
    low, high = int(bounds[comm.rank]), int(bounds[comm.rank + 1])
    slabs = Slabs(comm, slab.lo, slab.hi, problem.num_nodes)
    cost = slabs.lookup(np.arange(low, high), problem.cost)
    part = np.zeros(high - low, np.int32)
    with agreed(comm, "METIS"):
        if comm.rank == 0:
            part = _call(xadj, adjncy, cost, problem)
    return Slabs(comm, low, high, problem.num_nodes).lookup(np.arange(slab.lo, slab.hi), part)


def _call(xadj: Array, adjncy: Array, cost: Array, problem: Problem) -> Array:
    try:
        import pymetis
    except ImportError:
        raise InputError(
            "--method metis needs the package pymetis (pip install pymetis); the others are "
            "parmetis, streaming, random and block"
        ) from None
    settings = pymetis.Options(
        seed=problem.options.seed, ufactor=max(1, round((problem.options.imbalance - 1) * 1000))
    )
    _, part = pymetis.part_graph(
        problem.num_parts,
        pymetis.CSRAdjacency(adj_starts=xadj.astype(np.int32), adjacent=adjncy.astype(np.int32)),
        vweights=cost.astype(np.int32),
        options=settings,
        recursive=False,
    )
    return np.asarray(part, np.int32)
