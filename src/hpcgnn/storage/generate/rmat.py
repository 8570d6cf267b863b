"""R-MAT graphs (Chakrabarti, Zhan, Faloutsos 2004) with Graph500's parameters, symmetric.

The adjacency matrix is halved level by level; an edge falls into a quadrant with probability A, B,
B, D at each level. A slab is an aligned range of 2^k nodes, so the probability of a block of two
slabs is a product over levels, and its edges are drawn from a separate random stream.
"""

from __future__ import annotations

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.sorting import sorted_unique
from hpcgnn.storage.generate import streams
from hpcgnn.storage.generate.sizes import SLAB_EDGES
from hpcgnn.storage.generate.streams import neighbour_lists

A, B, D = 0.57, 0.19, 0.05
_FREE = 2
# Probability of a pair of bits; _FREE stands for either bit.
_PAIRS = np.array([[A, B, A + B], [B, D, B + D], [A + B, B + D, 1]])


class RMat:
    """An undirected R-MAT graph without loops or parallel edges, stored in both directions.

    The lowest node ids have the highest degrees. The number of draws is such that the expected
    number of distinct edges agrees with `degree`; the actual number fluctuates slightly about it.

    Args:
        num_nodes, num_classes: N, and C classes of consecutive nodes.
        degree: mean number of in-edges per node.
        seed: determines the whole graph.

    Raises:
        InputError: more than half of all pairs of nodes would be edges.
    """

    def __init__(
        self,
        num_nodes: int,
        degree: float,
        num_classes: int,
        seed: int,
        *,
        slab_edges: int = SLAB_EDGES,
    ) -> None:
        self.num_nodes = num_nodes
        self.num_classes = num_classes
        self.seed = seed
        self.levels = max(1, (num_nodes - 1).bit_length())
        wanted = num_nodes * degree / 2
        room = num_nodes * (num_nodes - 1) / 2
        if wanted > room / 2:
            raise InputError(
                f"{num_nodes} nodes have {room:.0f} pairs, and the {wanted:.0f} edges asked for "
                "are more than half of these: give more --nodes or a lower --degree"
            )
        draws = _draws_for(wanted, num_nodes, self.levels)
        self._slabs = self._cut(0, 0, 2 * draws, slab_edges)
        self.num_slabs = len(self._slabs)
        # [slabs, levels]: the bits that a slab fixes, from the top; all others are free.
        self._bits = np.full((self.num_slabs, self.levels), _FREE, np.int8)
        for index, (prefix, length) in enumerate(self._slabs):
            for level in range(length):
                self._bits[index, level] = (prefix >> (length - 1 - level)) & 1
        weights = np.ones((self.num_slabs, self.num_slabs))
        for bits in self._bits.T:
            weights *= _PAIRS[bits[:, None], bits[None, :]]
        weights += np.triu(weights, 1)
        upper = np.triu_indices(self.num_slabs)
        self._counts = np.zeros(weights.shape, np.int64)
        random = streams.generator(seed, streams.COUNTS)
        self._counts[upper] = random.poisson(draws * weights[upper])

    def slab(self, index: int) -> tuple[int, int]:
        """Return the bounds of a slab, nodes `lo .. hi - 1`."""
        prefix, length = self._slabs[index]
        width = 1 << (self.levels - length)
        return prefix * width, (prefix + 1) * width

    def labels(self, lo: int, hi: int) -> np.ndarray:
        """Return the classes of the nodes `lo .. hi - 1`: int64."""
        return np.arange(lo, hi) * self.num_classes // self.num_nodes

    def rows(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a slab's in-neighbours, ascending: counts int64 [n], indices int64 [e]."""
        lo, hi = self.slab(index)
        return neighbour_lists(index, self.num_slabs, self._block, lo, hi, self.num_nodes)

    def _cut(self, prefix: int, length: int, draws: float, limit: int) -> list[tuple[int, int]]:
        """Return slabs below a prefix, within the graph and of at most `limit` draws each."""
        width = 1 << (self.levels - length)
        if prefix * width >= self.num_nodes:
            return []
        whole = (prefix + 1) * width <= self.num_nodes
        if whole and (draws <= limit or width == 1):
            return [(prefix, length)]
        return [
            slab
            for bit in (0, 1)
            for slab in self._cut(2 * prefix + bit, length + 1, draws * _PAIRS[bit, _FREE], limit)
        ]

    def _block(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the undirected edges between two slabs."""
        count = int(self._counts[first, second])
        random = streams.generator(self.seed, streams.EDGES, first, second)
        one = np.zeros(count, np.int64)
        two = np.zeros(count, np.int64)
        for row_bit, column_bit in zip(self._bits[first], self._bits[second], strict=True):
            _append_bits(one, two, row_bit, column_bit, random)
        if first == second:
            one, two = np.minimum(one, two), np.maximum(one, two)
            kept = one != two
            one, two = one[kept], two[kept]
        edges = sorted_unique(one * self.num_nodes + two)
        return edges // self.num_nodes, edges % self.num_nodes


def _append_bits(
    one: np.ndarray, two: np.ndarray, row_bit: int, column_bit: int, random: np.random.Generator
) -> None:
    """Append a binary digit to both ends, drawn at random if it is free."""
    one *= 2
    two *= 2
    if row_bit != _FREE and column_bit != _FREE:
        one += row_bit
        two += column_bit
        return
    draw = random.random(one.size)
    if row_bit != _FREE:
        one += row_bit
        two += draw >= _PAIRS[row_bit, 0] / _PAIRS[row_bit, _FREE]
    elif column_bit != _FREE:
        two += column_bit
        one += draw >= _PAIRS[0, column_bit] / _PAIRS[_FREE, column_bit]
    else:
        one += draw >= A + B
        two += (draw >= A) & (draw < A + B) | (draw >= A + 2 * B)


def _draws_for(wanted: float, num_nodes: int, levels: int) -> float:
    """Return the number of draws (over the whole square) for `wanted` distinct undirected edges.

    Pairs of nodes with the same numbers of levels in each quadrant have the same probability, and
    there are few such kinds, so the expected number of distinct edges is a short sum.
    """
    pairs = _kinds(num_nodes, levels) / 2
    corner = np.arange(levels + 1)
    both_zero, unequal = corner[:, None], corner[None, :]
    both_one = levels - both_zero - unequal
    valid = (both_one >= 0) & (unequal >= 1)
    probability = np.where(
        valid, 2 * A**both_zero * B**unequal * D ** np.maximum(both_one, 0.0), 0.0
    )
    low, high = 0.0, max(1.0, 4 * wanted)
    while _different(high, pairs, probability) < wanted:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _different(middle, pairs, probability) < wanted:
            low = middle
        else:
            high = middle
    return high


def _different(draws: float, pairs: np.ndarray, probability: np.ndarray) -> float:
    return float((pairs * -np.expm1(-draws * probability)).sum())


def _kinds(num_nodes: int, levels: int) -> np.ndarray:
    """Return the number of cells (u, v), u, v < N, by levels with bits 00 and with unequal bits."""
    counts = {(True, True): np.zeros((levels + 1, levels + 1))}
    counts[True, True][0, 0] = 1
    for level in reversed(range(levels)):
        limit = ((num_nodes - 1) >> level) & 1
        following: dict[tuple[bool, bool], np.ndarray] = {}
        for (row_tight, column_tight), table in counts.items():
            for row_bit in range(2 if not row_tight else limit + 1):
                for column_bit in range(2 if not column_tight else limit + 1):
                    state = (row_tight and row_bit == limit, column_tight and column_bit == limit)
                    moved = table
                    if row_bit != column_bit:
                        moved = np.roll(table, 1, axis=1)
                    elif row_bit == 0:
                        moved = np.roll(table, 1, axis=0)
                    following[state] = following.get(state, 0) + moved
        counts = following
    return np.sum(list(counts.values()), axis=0)
