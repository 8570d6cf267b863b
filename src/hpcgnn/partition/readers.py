"""Which parts read each row: what a partition sends, in bits per row instead of a list of pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.edges import by_rank
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.routing import Slabs
from hpcgnn.partition.sorting import Array, Int64, distinct, tally

_WORD = 64


class Readers:
    """For each row of the slab the parts that have edges from it.

    Attributes:
        present: uint64 `[rows, words]`, a bit for each part with an edge from the row.
        single: the same for parts with exactly one such edge.
        cut, edges: int64 `[P]`, this rank's edges into each part, and those of them from others.
    """

    def __init__(
        self,
        comm: Communicator,
        problem: Problem,
        owner: Array,
        part_of: Callable[[Int64], Array],
    ) -> None:
        """Walks through the edges once. All ranks call.

        Args:
            owner: the part of each row of the slab.
            part_of: the part of each of some rows, ascending, of the graph. Collective.
        """
        self.owner, self.num_parts = owner, problem.num_parts
        shape = (len(owner), -(-problem.num_parts // _WORD))
        self.present = np.zeros(shape, np.uint64)
        self.single = np.zeros(shape, np.uint64)
        self.cut, self.edges = np.zeros((2, problem.num_parts), np.int64)
        slabs = Slabs(comm, problem.edges.lo, problem.edges.hi, problem.num_nodes)
        for window in problem.edges.windows(comm):
            reader = owner[window.row + (window.lo - slabs.low)]
            table, place = distinct(window.source, problem.num_nodes)
            remote = part_of(table)[place] != reader
            self.edges += np.bincount(reader, minlength=self.num_parts)
            self.cut += np.bincount(reader[remote], minlength=self.num_parts)
            pairs, counts = tally(window.source.astype(np.int64) * self.num_parts + reader)
            ids = pairs // self.num_parts
            rank = np.searchsorted(slabs.ends, ids, side="right")
            pairs, counts = by_rank(comm, rank, pairs, counts, where="partition: readers")
            order = np.argsort(pairs, kind="stable")  # equal ones of several ranks together
            pairs, counts = pairs[order], counts[order]
            self._add(pairs // self.num_parts - slabs.low, pairs % self.num_parts, counts)

    def _add(self, row: Array, part: Array, count: Array) -> None:
        """Takes in pairs, ascending by row and part, perhaps more than once."""
        if not len(row):
            return
        words = self.present.shape[1]
        pair = row * self.num_parts + part
        first = np.flatnonzero(np.diff(pair, prepend=-1))
        count = np.add.reduceat(count, first)
        slot, bit = row[first] * words + part[first] // _WORD, bits(part[first])
        start = np.flatnonzero(np.diff(slot, prepend=-1))
        slot, added = slot[start], np.bitwise_or.reduceat(bit, start)
        once = np.bitwise_or.reduceat(np.where(count == 1, bit, np.uint64(0)), start)
        present, single = self.present.reshape(-1), self.single.reshape(-1)
        single[slot] = (single[slot] & ~added) | (once & ~present[slot])
        present[slot] |= added

    def abroad(self) -> Array:
        """`present` without the row's own part."""
        result = self.present.copy()
        rows = np.arange(len(result))
        result[rows, self.owner // _WORD] &= ~bits(self.owner)
        return result

    def volume(self, comm: Communicator) -> tuple[Int64, Int64]:
        """Rows that each part sends and reads, once per reader: int64 `[P]` each. Collective."""
        abroad = self.abroad()
        copies = np.bitwise_count(abroad).sum(axis=1)
        sent = np.bincount(self.owner, weights=copies, minlength=self.num_parts).astype(np.int64)
        halo = np.array(
            [
                np.count_nonzero(abroad[:, part // _WORD] & bits(np.array(part)))
                for part in range(self.num_parts)
            ]
        )
        sent, halo = comm.allreduce(np.stack([sent, halo]), where="partition: volume")
        return sent, halo


def bits(part: Array) -> Array:
    """The bit of each part in its word: uint64."""
    return np.uint64(1) << (part % _WORD).astype(np.uint64)
