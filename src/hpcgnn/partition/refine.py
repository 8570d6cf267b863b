"""Refinement for fewer rows sent: in all, by the heaviest sender, and to the heaviest reader.

A row that moves takes its own readers along, and may be the last or the first neighbour that its
in-neighbours have in a part. Both are known from bits per row (`Readers`), so that a pass reads the
edges twice. A pass moves a share of the rows, those with the largest gain first; if any of the
three numbers would rise, fewer of them move (the idea of volume refinement in XtraPuLP's third
stage; Slota et al., IPDPS 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.edges import Window
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.quality import Readers, bits
from hpcgnn.partition.routing import Array, Int64, Slabs, distinct, pointers, tally
from hpcgnn.storage.fingerprint import mix64

PASSES = 16
_SHARES = 4  # a row may move in one of this many passes, so that neighbours seldom move at once
_CUTS = 6  # how often the moves of a pass are halved before it is given up
_CANDIDATES = 2  # parts that a row is tried in
_MOST, _SWEEPS = 200_000, 3  # moves that a rank considers in a pass, and how often
_WORTH = 0.0005  # share of the volume below which a round of passes is the last


def refine_volume(comm: Communicator, problem: Problem, owner: Array) -> Array:
    """Return a partition with fewer boundary rows: int32, a part per row of the slab. Collective.

    None of the three numbers rises: rows sent in all, by the heaviest sender, to the heaviest
    receiver. Nor does the heaviest part become heavier, unless `imbalance` allows it.
    """
    state = _State.of(comm, problem, owner.astype(np.int32))
    first = before = state.numbers()
    for k in range(PASSES):
        state = state.improved(k)
        if k % _SHARES == _SHARES - 1:
            after = state.numbers()
            if before[0] - after[0] <= _WORTH * before[0]:
                break
            before = after
    kinds = ("in all", "by the heaviest sender", "to the heaviest receiver")
    changes = zip(kinds, first, state.numbers(), strict=True)
    told = ", ".join(f"{kind} {old:,} -> {new:,}" for kind, old, new in changes)
    problem.notes.append(f"rows sent, refined: {told}")
    return state.owner


@dataclass(frozen=True)
class _Moves:
    """Rows of the slab and the part that each moves to, in an order that keeps the limits."""

    row: Array
    part: Array


@dataclass(frozen=True)
class _State:
    """A partition and the rows that it sends.

    sent, halo: int64 `[P]`, rows that each part sends and reads; load: float64 `[P]`, its cost.
    """

    comm: Communicator
    problem: Problem
    slabs: Slabs
    owner: Array
    readers: Readers
    sent: Int64
    halo: Int64
    load: Array

    @classmethod
    def of(cls, comm: Communicator, problem: Problem, owner: Array) -> _State:
        slabs = Slabs(comm, problem.edges.lo, problem.edges.hi, problem.num_nodes)
        readers = Readers(comm, problem, owner, lambda ids: slabs.lookup(ids, owner))
        sent, halo = readers.volume(comm)
        load = np.bincount(owner, weights=problem.cost, minlength=problem.num_parts)
        load = comm.allreduce(load.astype(np.float64))
        return cls(comm, problem, slabs, owner, readers, sent, halo, load)

    def numbers(self) -> tuple[int, int, int]:
        """Return the rows sent in all, by the heaviest sender, to the heaviest receiver."""
        return int(self.sent.sum()), int(self.sent.max()), int(self.halo.max())

    def improved(self, k: int) -> _State:
        """Return the state after pass `k`, itself if no share of the moves helps. Collective."""
        moves = self._moves(k)
        for _ in range(_CUTS):
            if not self.comm.allreduce(len(moves.row)):
                break
            owner = self.owner.copy()
            owner[moves.row] = moves.part
            after = _State.of(self.comm, self.problem, owner)
            pairs = list(zip(after.numbers(), self.numbers(), strict=True))
            fits = after.load.max() <= self._limit()
            if (
                fits
                and all(new <= old for new, old in pairs)
                and any(new < old for new, old in pairs)
            ):
                return after
            half = len(moves.row) // 2
            moves = _Moves(moves.row[:half], moves.part[:half])
        return self

    def _moves(self, k: int) -> _Moves:
        """Return worthwhile moves of this pass's share of the rows, within the parts' limits."""
        found = [self._wishes(window, k) for window in self.problem.edges.windows(self.comm)]
        row, part, gain = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((row, -gain))[:_MOST]
        row, part = row[order], part[order]
        taken = self._within_room(row, part)
        return _Moves(row[taken], part[taken])

    def _limit(self) -> float:
        """Return the most that a part may cost."""
        mean = self.load.sum() / len(self.load)
        return max(self.problem.options.imbalance * mean, float(self.load.max()))

    def _within_room(self, row: Array, part: Array) -> list[int]:
        """Return the moves to make, in an order in which each leaves every part within its limit.

        The ranks share the parts' room evenly. A row that leaves a part makes room in it.
        """
        room = (np.maximum(self._limit() - self.load, 0) / self.comm.size).tolist()
        own, cost = self.owner[row].tolist(), self.problem.cost[row].tolist()
        parts, waiting, taken = part.tolist(), list(range(len(row))), []
        for _ in range(_SWEEPS):
            left = []
            for k in waiting:
                if cost[k] <= room[parts[k]]:
                    room[parts[k]] -= cost[k]
                    room[own[k]] += cost[k]
                    taken.append(k)
                else:
                    left.append(k)
            if len(left) == len(waiting):
                break
            waiting = left
        return taken

    def _wishes(self, window: Window, k: int) -> tuple[Array, Array, Array]:
        """Return rows that lower the weighted volume in another part, these parts, and by how much.

        Only boundary rows are considered. A row sent from part s to part r weighs more, the more
        s sends and r receives. Collective.
        """
        low = window.lo - self.slabs.low
        table, place = distinct(window.source, self.problem.num_nodes)
        words = self.readers.present.shape[1]
        known = self.slabs.lookup(
            table, np.column_stack([self.readers.present, self.readers.single])
        )
        source_part = self.slabs.lookup(table, self.owner)[place]
        row, part = self._candidates(window, source_part, k)
        own = self.owner[low + row]

        # The edges of each candidate, one after another.
        degree = np.bincount(window.row, minlength=window.hi - window.lo)
        starts, counts = pointers(degree), degree[row]
        pick = np.repeat(starts[row] - pointers(counts)[:-1], counts) + np.arange(counts.sum())
        pair = np.repeat(np.arange(len(row)), counts)
        near, at = source_part[pick], place[pick]
        here, there = own[pair], part[pair]
        leaves = (near != here) & _has(known[:, words:], at, here)
        enters = (near != there) & ~_has(known[:, :words], at, there)
        change = np.where(enters, self._weight(near, there), 0.0)
        change -= np.where(leaves, self._weight(near, here), 0.0)
        gain = self._own_gain(low + row, own, part)
        gain -= np.bincount(pair, weights=change, minlength=len(row))

        best = np.lexsort((part, -gain, row))
        best = best[np.diff(row[best], prepend=-1) > 0]
        best = best[gain[best] > 1e-9]
        return low + row[best], part[best], gain[best]

    def _candidates(self, window: Window, source_part: Array, k: int) -> tuple[Array, Array]:
        """Return rows of this pass's share, with other parts where most of their neighbours are."""
        ids = np.arange(window.lo, window.hi).astype(np.uint64)
        mix64(ids)
        ours = ids % np.uint64(_SHARES) == np.uint64(k % _SHARES)
        own = self.owner[window.lo - self.slabs.low : window.hi - self.slabs.low]
        kept = ours[window.row] & (source_part != own[window.row])
        parts = self.problem.num_parts
        pairs, counts = tally(window.row[kept].astype(np.int64) * parts + source_part[kept])
        row, part = pairs // parts, pairs % parts
        order = np.lexsort((part, -counts, row))
        row, part = row[order], part[order]
        first = np.maximum.accumulate(
            np.where(np.diff(row, prepend=-1) > 0, np.arange(len(row)), 0)
        )
        kept = np.arange(len(row)) - first < _CANDIDATES
        return row[kept], part[kept]

    def _own_gain(self, row: Array, own: Array, part: Array) -> Array:
        """Return how much less each row's own copies weigh if it is in `part`."""
        abroad = self.readers.present[row]
        total = np.zeros(len(row))
        for reader in range(self.problem.num_parts):
            reads = _has(abroad, np.arange(len(row)), np.full(len(row), reader))
            total += np.where(reads & (own != reader), self._weight(own, reader), 0.0)
            total -= np.where(reads & (part != reader), self._weight(part, reader), 0.0)
        return total

    def _weight(self, sender: Array, receiver: Array | int) -> Array:
        send, receive = self.sent / max(self.sent.max(), 1), self.halo / max(self.halo.max(), 1)
        return 1 + send[sender] ** 4 + receive[receiver] ** 4


def _has(words: Array, row: Array, part: Array) -> Array:
    """Return whether the bit of each part is set in its row."""
    return (words[row, part // 64] & bits(part)) != 0
