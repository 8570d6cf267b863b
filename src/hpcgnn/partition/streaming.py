"""A partition in one pass over the rows, for graphs that no METIS can hold.

All ranks walk through their slabs at once, a batch at a time. A node goes where most of its
in-neighbours are that have a part already, less a price that grows with the load of the part
(Fennel; Tsourakakis et al., WSDM 2014). Beside the slab a rank holds one part number per row and
the scores of one batch.
"""

from __future__ import annotations

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.routing import Slabs
from hpcgnn.partition.sorting import Array, Int64, distinct, positions

_ROUNDS, _ROWS = 256, 32
_SCORES = 1 << 21
_SWEEPS = 3


def streaming_parts(comm: Communicator, problem: Problem) -> Array:
    """The part of each row of the slab: int32. All ranks call."""
    slab, num_parts = problem.slab, problem.num_parts
    slabs = Slabs(comm, slab.lo, slab.hi, problem.num_nodes)
    count = slab.hi - slab.lo
    owner = np.full(count, -1, np.int32)
    total = comm.allreduce(int(problem.cost.sum()))
    edges = comm.allreduce(len(slab.indices))
    # Fennel's price with gamma 3/2, where a node of mean cost counts as one.
    price = (
        1.5
        * np.sqrt(num_parts)
        * edges
        / problem.num_nodes**1.5
        * np.sqrt(problem.num_nodes / total)
    )
    capacity = problem.options.imbalance * total / num_parts
    load = np.zeros(num_parts)
    least = -(-count * num_parts // _SCORES)
    rounds = comm.allreduce(max(min(_ROUNDS, count // _ROWS), least, 1), op="max")
    for k in range(rounds):
        low, high = count * k // rounds, count * (k + 1) // rounds
        batch = _Batch(slabs, problem, low, high, owner)
        share = int(problem.cost[low:].sum()) / max(total - load.sum(), 1)  # of what is to come
        room = np.maximum(capacity - load, 0) * share
        batch.assign(owner, load, price, room)
        load += comm.allreduce(batch.load(owner), where="partition: loads")
    return owner


class _Batch:
    """Rows `low .. high - 1` of the slab and what is known about their neighbours."""

    def __init__(self, slabs: Slabs, problem: Problem, low: int, high: int, owner: Array) -> None:
        slab = problem.slab
        self.low, self.high, self.num_parts = low, high, problem.num_parts
        self.cost = problem.cost[low:high].astype(np.float64)
        edges = slice(int(slab.indptr[low]), int(slab.indptr[high]))
        row = np.repeat(positions(high - low), np.diff(slab.indptr[low : high + 1]))
        sources = slab.indices[edges]
        table, place = distinct(sources, problem.num_nodes)
        part = slabs.lookup(table, owner)[place]
        known = part >= 0
        self.known = self._count(row[known], part[known])
        inside = (sources >= slab.lo + low) & (sources < slab.lo + high)
        self.inner = (row[inside], (sources[inside] - slab.lo - low).astype(np.int64))

    def _count(self, row: Array, part: Array) -> Array:
        """Neighbours of each row in each part: float32 [rows, parts]."""
        shape = (self.high - self.low, self.num_parts)
        pairs = row.astype(np.int64) * self.num_parts + part
        return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float32)

    def load(self, owner: Array) -> Array:
        """Cost of the batch by part: float64 [parts]."""
        part = owner[self.low : self.high]
        total = np.bincount(part, weights=self.cost, minlength=self.num_parts)
        return total.astype(np.float64)  # bincount of nothing counts in integers

    def assign(self, owner: Array, load: Array, price: float, room: Array) -> None:
        """Fills in the owners. A few sweeps, so that rows of one batch see each other."""
        rows = slice(self.low, self.high)
        for _ in range(_SWEEPS):
            score = self.known - (price * np.sqrt(load)).astype(np.float32)
            linked = np.asarray(self.known.any(axis=1))
            if owner[rows].min(initial=0) >= 0:
                for row, column in (self.inner, self.inner[::-1]):
                    near = self._count(row, owner[rows][column])
                    score += near
                    linked = np.logical_or(linked, near.any(axis=1))
            owner[rows] = self._fill(score, linked, room)

    def _fill(self, score: Array, linked: Array, room: Array) -> Array:
        """Best part for each row while it has room; the rest, in order, wherever room is left."""
        part = np.full(len(score), -1, np.int32)
        left = room.copy()
        waiting = np.flatnonzero(linked)
        for _ in range(min(self.num_parts, 4)):
            if not len(waiting):
                break
            open_ = np.where(left > 0, np.float32(0), np.float32(-np.inf))
            wish = np.argmax(score[waiting] + open_, axis=1)
            gain = score[waiting, wish]
            order = np.lexsort((-gain, wish))
            cost, wanted = self.cost[waiting[order]], wish[order]
            before = np.cumsum(cost) - cost
            first = np.searchsorted(wanted, np.arange(self.num_parts))
            base = np.append(before, cost.sum())[first]
            taken = before - base[wanted] < left[wanted]
            chosen = waiting[order[taken]]
            part[chosen] = wanted[taken]
            left -= np.bincount(wanted[taken], weights=cost[taken], minlength=self.num_parts)
            waiting = waiting[part[waiting] < 0]
        self._pour(part, left)
        return part

    def _pour(self, part: Array, left: Array) -> None:
        """The rows without a part, in consecutive runs, in proportion to the room left."""
        rest = np.flatnonzero(part < 0)
        if not len(rest):
            return
        share = np.maximum(left, 0)
        share = share if share.any() else np.ones(self.num_parts)
        cost = self.cost[rest]
        middle = (np.cumsum(cost) - cost / 2) / max(cost.sum(), 1e-300)
        ends: Int64 = np.cumsum(share) / share.sum()
        part[rest] = np.minimum(np.searchsorted(ends, middle), self.num_parts - 1)
