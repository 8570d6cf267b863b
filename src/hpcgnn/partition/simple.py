"""Partitions without a library: random, block, and streaming by passes over the edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.edges import Window
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.routing import Array, Int64, Slabs, distinct, tally
from hpcgnn.storage.fingerprint import mix64

_ROUNDS = 4
_PIECE = 1 << 18  # rows
PASSES = 10
_WINDOWS = 64  # least number in a pass: rows of one window don't see each other's moves
_LOOSE, _STRICT = 1.25, 3  # limit of the first passes; number of passes with the requested one
_SETTLED = 0.002  # share of moved rows below which only the strict passes follow


def random_parts(ids: Array, num_nodes: int, num_parts: int, seed: int = 0) -> Array:
    """Return the part of each of `ids`, int32; part sizes differ by one node at most.

    A pseudo-random permutation of 0 .. num_nodes - 1 is cut into equal pieces. Any rank can compute
    any node's part: the permutation is computed, not stored (a Feistel network on just enough bits,
    applied again while the result is out of the range).
    """
    ids, out = np.asarray(ids), np.empty(len(ids), np.int32)
    for low, high in _pieces(len(ids)):
        out[low:high] = _random(ids[low:high], num_nodes, num_parts, seed)
    return out


def _random(ids: Array, num_nodes: int, num_parts: int, seed: int) -> Array:
    half = max((num_nodes - 1).bit_length() + 1, 2) // 2
    place = ids.astype(np.uint64)
    outside = np.ones(len(place), bool)
    while outside.any():
        place[outside] = _feistel(place[outside], half, seed)
        outside = place >= num_nodes
    return _cut(place.astype(np.int64), num_nodes, num_parts)


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows, so that temporary arrays of a slab take little memory."""
    for low in range(0, count, _PIECE):
        yield low, min(low + _PIECE, count)


def _feistel(values: Array, half: int, seed: int) -> Array:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for round_ in range(_ROUNDS):
        mixed = right + np.uint64((seed * _ROUNDS + round_) % 2**32 << 32)
        mix64(mixed)
        left, right = right, left ^ (mixed & mask)
    return (left << shift) | right


def block_parts(ids: Array, num_nodes: int, num_parts: int) -> Array:
    """Return parts of equally many consecutive nodes in the order of the file: int32."""
    return _cut(np.asarray(ids, np.int64), num_nodes, num_parts)


def _cut(place: Array, num_nodes: int, num_parts: int) -> Array:
    ends = num_nodes * np.arange(1, num_parts + 1, dtype=object) // num_parts
    return np.searchsorted(ends.astype(np.int64), place, side="right").astype(np.int32)


def streaming_parts(comm: Communicator, problem: Problem) -> Array:
    """Return the part of each row of the slab: int32. Collective."""
    stream = _Stream.start(comm, problem)
    settled, k = False, 0
    while k < PASSES:
        strict = k >= PASSES - _STRICT
        moved = stream.restream(problem.options.imbalance if strict else _LOOSE)
        settled = moved < _SETTLED * problem.num_nodes
        k = PASSES - _STRICT if settled and not strict else k + 1
    return stream.owner


@dataclass
class _Stream:
    """The state of streaming.

    owner: int32 `[rows]`, the parts so far; load: float64 `[P]`, cost of each part on all ranks.
    """

    comm: Communicator
    problem: Problem
    slabs: Slabs
    owner: Array
    load: Array

    @classmethod
    def start(cls, comm: Communicator, problem: Problem) -> _Stream:
        """Start from runs of consecutive rows or at random, whichever cuts less. Collective."""
        edges = problem.edges
        slabs = Slabs(comm, edges.lo, edges.hi, problem.num_nodes)
        starts = [
            cls(comm, problem, slabs, owner, np.empty(0))
            for owner in (_runs(comm, problem), _scattered(problem))
        ]
        best = starts[int(np.argmin([start._cut() for start in starts]))]
        best.load = comm.allreduce(best._weigh(best.owner, problem.cost))
        return best

    def _cut(self) -> int:
        count = 0
        for window in self.problem.edges.windows(self.comm):
            own = self.owner[window.row + (window.lo - self.slabs.low)]
            count += int(np.count_nonzero(self._parts(window) != own))
        return int(self.comm.allreduce(count))

    def _parts(self, window: Window) -> Array:
        """Return the part of each source."""
        table, place = distinct(window.source, self.problem.num_nodes)
        return self.slabs.lookup(table, self.owner)[place]

    def _weigh(self, part: Array, cost: Array) -> Array:
        counted = np.zeros(self.problem.num_parts)
        for low, high in _pieces(len(part)):
            counted += np.bincount(part[low:high], cost[low:high], len(counted))
        return counted

    def restream(self, imbalance: float) -> int:
        """Make one pass; return the number of rows of all ranks that moved. Collective."""
        limit = imbalance * self.load.sum() / self.problem.num_parts
        moved = 0
        for window in self.problem.edges.windows(self.comm, least=_WINDOWS):
            row, part, gain = self._wishes(window, limit)
            row, part = self._accept(row + (window.lo - self.slabs.low), part, gain, limit)
            cost = self.problem.cost[row]
            change = self._weigh(part, cost) - self._weigh(self.owner[row], cost)
            self.load = self.load + self.comm.allreduce(change, where="partition: loads")
            self.owner[row] = part
            moved += len(row)
        return int(self.comm.allreduce(moved))

    def _wishes(self, window: Window, limit: float) -> tuple[Array, Array, Array]:
        """Return the window's rows that fit better in another part, this part, and the gain."""
        num_parts, count = self.problem.num_parts, window.hi - window.lo
        own = self.owner[window.lo - self.slabs.low : window.hi - self.slabs.low]
        pairs, found = tally(window.row.astype(np.int64) * num_parts + self._parts(window))
        row, part = pairs // num_parts, pairs % num_parts
        score = found * np.maximum(1 - self.load[part] / limit, 0)
        kept, stays = np.zeros(count), part == own[row]
        kept[row[stays]] = score[stays]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        best = np.zeros(count)
        best[row[first]] = np.maximum.reduceat(score, first) if len(first) else 0
        wanted = np.flatnonzero((score == best[row]) & (score > kept[row]) & ~stays)
        wanted = wanted[np.diff(row[wanted], prepend=-1) > 0]  # the first of equal ones
        return row[wanted], part[wanted], score[wanted] - kept[row[wanted]]

    def _accept(self, row: Array, part: Array, gain: Array, limit: float) -> tuple[Array, Array]:
        """Return the moves with the largest gain that fit this rank's share of each part's room."""
        cost = self.problem.cost[row]
        demand = self._weigh(part, cost)
        everyone = self.comm.allreduce(demand, where="partition: demand")
        share = np.maximum(limit - self.load, 0) / np.maximum(everyone, 1e-300)
        room = demand * np.minimum(share, 1)
        order = np.lexsort((row, -gain, part))
        row, part, cost = row[order], part[order], cost[order]
        reached: Int64 = np.cumsum(cost)
        before = np.append(0, reached)[np.searchsorted(part, np.arange(len(room)))]
        taken = reached - before[part] <= room[part]
        return row[taken], part[taken]


def _scattered(problem: Problem) -> Array:
    """Return `random_parts` of the slab's rows."""
    first, options = problem.edges.lo, problem.options
    out = np.empty(problem.edges.hi - first, np.int32)
    for low, high in _pieces(len(out)):
        ids = np.arange(first + low, first + high)
        out[low:high] = random_parts(ids, problem.num_nodes, problem.num_parts, options.seed)
    return out


def _runs(comm: Communicator, problem: Problem) -> Array:
    """Return parts of consecutive rows with equal cost: int32. Collective."""
    costs = comm.allgather(int(problem.cost.sum()))
    before, whole = sum(costs[: comm.rank]), max(sum(costs), 1)
    out = np.empty(len(problem.cost), np.int32)
    for low, high in _pieces(len(out)):
        cost = problem.cost[low:high]
        middle = before + np.cumsum(cost) - cost / 2
        out[low:high] = np.clip(middle * problem.num_parts // whole, 0, problem.num_parts - 1)
        before += int(cost.sum())
    return out
