"""Degree-corrected planted partition (Karrer & Newman 2011) with power-law expected degrees.

The nodes are cut into slabs. The undirected edges between slabs a and b are drawn from a separate
random stream, so that a rank that needs the rows of a slab draws the blocks of this slab only, and
no rank stores the whole graph. The edges between two slabs are drawn twice, once for each end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.storage.generate import streams
from hpcgnn.storage.generate.sizes import SLAB_EDGES
from hpcgnn.storage.generate.streams import first_distinct, neighbour_lists, share_out

_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class _Slab:
    """The nodes of a slab ordered by class; `cumulative[k]` is the sum of weights before node k."""

    nodes: np.ndarray  # int64 [n]
    cumulative: np.ndarray  # float64 [n + 1]
    starts: np.ndarray  # int64 [classes + 1]

    def draw(self, at: np.ndarray) -> np.ndarray:
        """Return the positions in `nodes` at which the cumulative weight passes `at`."""
        found = np.searchsorted(self.cumulative, at, side="right") - 1
        return np.minimum(found, self.nodes.size - 1)

    def class_weights(self) -> np.ndarray:
        return np.diff(self.cumulative[self.starts])


_Draw = Callable[[_Slab, _Slab, np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


class PlantedPartition:
    """An undirected graph without loops or parallel edges, stored in both directions.

    Args:
        comm: the ranks that share the counting; all construct the same graph.
        num_nodes, num_classes: classes are communities of about num_nodes / num_classes nodes.
        degree: mean number of in-edges per node.
        homophily: share of the edges that join nodes of one class.
        exponent: exponent of the power law of expected degrees, above 2; its tail is cut where a
            node would be adjacent to a quarter of its class.
        seed: determines the whole graph.

    Raises:
        InputError: the classes are too small for the number of edges.
    """

    def __init__(
        self,
        comm: Communicator,
        num_nodes: int,
        degree: float,
        num_classes: int,
        seed: int,
        *,
        homophily: float = 0.55,
        exponent: float = 2.5,
        slab_edges: int = SLAB_EDGES,
    ) -> None:
        self.num_nodes = num_nodes
        self.num_classes = num_classes
        self.seed = seed
        self.slab_rows = max(1, min(num_nodes, int(slab_edges / max(degree, 0.01))))
        self.num_slabs = -(-num_nodes // self.slab_rows)
        self._power = -1 / (exponent - 1)
        mean = (exponent - 1) / (exponent - 2)
        self._top = mean * max(2.0, num_nodes / num_classes / 4 / max(degree, 0.01))
        cached = max(2, _CACHE_BYTES // (16 * self.slab_rows))
        self._slab = lru_cache(cached)(self._make_slab)
        self._num_edges = round(num_nodes * degree / 2)
        own = {s: self._table(s) for s in range(comm.rank, self.num_slabs, comm.size)}
        tables: dict[int, np.ndarray] = {}
        for found in comm.allgather(own, where="sizes of communities"):
            tables |= found
        share = 1.0 if num_classes == 1 else homophily
        self._share_out(np.stack([tables[s] for s in range(self.num_slabs)], axis=1), share)

    def _share_out(self, tables: np.ndarray, homophily: float) -> None:
        """Determine the number of edges of each pair of slabs, within and between classes.

        Args:
            tables: float64 [3, slabs, classes], see `_table`.
        """
        weights, sizes, squares = tables
        same = np.einsum("ac,bc->ab", weights, weights)
        totals = weights.sum(axis=1)
        other = np.maximum(np.outer(totals, totals) - same, 0)
        diagonal = np.arange(self.num_slabs)
        same[diagonal, diagonal] -= squares.sum(axis=1)
        for table in (same, other):
            table[diagonal, diagonal] /= 2
        num_same = round(self._num_edges * homophily)
        wanted = (num_same, self._num_edges - num_same)
        class_sizes = sizes.sum(axis=0)
        possible_same = float((class_sizes * (class_sizes - 1) / 2).sum())
        possible = (possible_same, self.num_nodes * (self.num_nodes - 1) / 2 - possible_same)
        for number, room, where in zip(wanted, possible, ("within", "between"), strict=True):
            if number > room / 2:
                raise InputError(
                    f"the graph has room for {room:.0f} edges {where} classes and {number} are "
                    "wanted, more than half: give more --nodes, a lower --degree, or another "
                    "--homophily or number of --classes"
                )
        upper = np.triu_indices(self.num_slabs)
        offsets = streams.uniform(self.seed, streams.COUNTS, 0, 2)
        self._counts = np.zeros((2, self.num_slabs, self.num_slabs), np.int64)
        for kind, table in ((0, same), (1, other)):
            self._counts[kind][upper] = share_out(wanted[kind], table[upper], offsets[kind])

    def slab(self, index: int) -> tuple[int, int]:
        """Return the bounds of a slab, nodes `lo .. hi - 1`."""
        lo = index * self.slab_rows
        return lo, min(self.num_nodes, lo + self.slab_rows)

    def labels(self, lo: int, hi: int) -> np.ndarray:
        """Return the classes of the nodes `lo .. hi - 1`: int64."""
        draw = streams.uniform(self.seed, streams.CLASS, lo, hi)
        return (draw * self.num_classes).astype(np.int64)

    def _table(self, index: int) -> np.ndarray:
        """Return sum of weights, number of nodes and sum of squares by class: `[3, classes]`."""
        slab = self._slab(index)
        squares = np.concatenate([[0.0], np.cumsum(np.diff(slab.cumulative) ** 2)])
        return np.stack([slab.class_weights(), np.diff(slab.starts), np.diff(squares[slab.starts])])

    def rows(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a slab's in-neighbours, ascending: counts int64 [n], indices int64 [e]."""
        lo, hi = self.slab(index)
        return neighbour_lists(index, self.num_slabs, self._block, lo, hi, self.num_nodes)

    def _make_slab(self, index: int) -> _Slab:
        lo, hi = self.slab(index)
        labels = self.labels(lo, hi)
        draw = streams.uniform(self.seed, streams.DEGREE, lo, hi)
        weights = np.minimum((1 - draw) ** self._power, self._top)
        weights = np.rint(weights * 65536) / 65536  # sums are exact: the same on every machine
        order = np.argsort(labels, kind="stable")
        return _Slab(
            lo + order,
            np.concatenate([[0.0], np.cumsum(weights[order])]),
            np.searchsorted(labels[order], np.arange(self.num_classes + 1)),
        )

    def _block(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the undirected edges between two slabs."""
        a, b = self._slab(first), self._slab(second)
        width = b.nodes.size
        keys = []
        for kind, draw_pairs in enumerate((_draw_same, _draw_other)):
            random = streams.generator(self.seed, streams.EDGES + kind, first, second)

            def draw(
                number: int, draw_pairs: _Draw = draw_pairs, random: np.random.Generator = random
            ) -> np.ndarray:
                one, two = draw_pairs(a, b, random, number)
                if first == second:
                    one, two = np.minimum(one, two), np.maximum(one, two)
                    kept = one != two
                    one, two = one[kept], two[kept]
                return one * width + two

            keys.append(first_distinct(draw, int(self._counts[kind, first, second])))
        edges = np.concatenate(keys)
        return a.nodes[edges // width], b.nodes[edges % width]


def _draw_same(
    a: _Slab, b: _Slab, random: np.random.Generator, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions in the same class, each end in proportion to its weight."""
    running = np.cumsum(a.class_weights() * b.class_weights())
    kind = np.searchsorted(running, random.random(number) * running[-1], side="right")
    kind = np.minimum(kind, running.size - 1)
    ends = []
    for slab in (a, b):
        low, weight = slab.cumulative[slab.starts[:-1]], slab.class_weights()
        found = slab.draw(low[kind] + random.random(number) * weight[kind])
        ends.append(np.minimum(found, slab.starts[kind + 1] - 1))
    return ends[0], ends[1]


def _draw_other(
    a: _Slab, b: _Slab, random: np.random.Generator, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return about `number` pairs of positions in different classes."""
    number += number // max(1, a.starts.size - 2)
    one, two = (slab.draw(random.random(number) * slab.cumulative[-1]) for slab in (a, b))
    classes = [
        np.searchsorted(slab.starts, end, side="right") for slab, end in ((a, one), (b, two))
    ]
    kept = classes[0] != classes[1]
    return one[kept], two[kept]
