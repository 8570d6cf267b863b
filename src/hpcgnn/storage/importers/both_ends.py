"""Whether every edge of a list stands at both of its ends, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hpcgnn.storage.importers.source import Edges

_BUCKETS = 1 << 12
_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class BothEnds:
    """Sums of a hash of the edges: those from the lower end count up, the others down.

    Each sum is over a part of the pairs of nodes, so that `find` keeps only that part.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(_BUCKETS, np.uint64)

    def add(self, edges: Edges) -> None:
        low, high, up, down = _directed(edges)
        code = _code(low, high)
        bucket = (code % np.uint64(_BUCKETS)).astype(np.intp)
        if edges.weight is not None:
            code = _mixed(code + edges.weight.astype(np.int64).view(np.uint64))
        np.add.at(self._sums, bucket[up], code[up])
        np.subtract.at(self._sums, bucket[down], code[down])

    def agree(self) -> bool:
        return not self._sums.any()

    def find(self, pieces: Iterable[Edges]) -> tuple[int, int]:
        """Going over the edges again: a node, and one that it lists and that doesn't list it."""
        wanted = np.uint64(np.argmax(self._sums != 0))
        parts = []
        for edges in pieces:
            low, high, up, _ = _directed(edges)
            weight = np.zeros(low.shape[0], np.int64) if edges.weight is None else edges.weight
            here = np.flatnonzero(
                (_code(low, high) % np.uint64(_BUCKETS) == wanted) & (low != high)
            )
            parts.append(
                np.stack([low, high, weight.astype(np.int64), np.where(up, 1, -1)])[:, here]
            )
        rows = np.concatenate(parts, axis=1)
        keys, at = np.unique(rows[:3], axis=1, return_inverse=True)
        balance = np.bincount(at.reshape(-1), rows[3])
        k = int(np.argmax(balance != 0))
        ends = int(keys[0, k]), int(keys[1, k])
        return ends if balance[k] > 0 else ends[::-1]


def _directed(edges: Edges) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lower and higher end, and masks of the edges that go up and down."""
    low = np.minimum(edges.source, edges.destination)
    high = np.maximum(edges.source, edges.destination)
    return low, high, edges.source < edges.destination, edges.source > edges.destination


def _code(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return _mixed(_mixed(low.view(np.uint64)) + high.view(np.uint64))


def _mixed(values: np.ndarray) -> np.ndarray:
    """uint64 numbers that differ in half of their bits where the values differ in one."""
    out = values + np.uint64(_FACTORS[0])
    for shift, factor in ((30, _FACTORS[1]), (27, _FACTORS[2])):
        out ^= out >> np.uint64(shift)
        out *= np.uint64(factor)
    return out ^ (out >> np.uint64(31))
