"""An order of nodes in which neighbours lie near each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import c_int64
from dataclasses import dataclass

import numpy as np

from hpcgnn.native import address
from hpcgnn.partition.layout.library import library
from hpcgnn.partition.routing import (
    Array,
    Int64,
    group_by,
    pointers,
    row_windows,
    sort_columns,
)


@dataclass(frozen=True)
class Adjacency:
    """The neighbours of each node, ascending and without duplicates.

    Attributes:
        begin: int64 `[n + 1]`.
        neighbour: int32 `[m]`.
    """

    begin: Int64
    neighbour: Array

    @classmethod
    def of(cls, indptr: Int64, columns: Array, number: Array | None = None) -> Adjacency:
        """Return the adjacency of edges given row by row, which may be repeated.

        Args:
            columns: `[E]`; edges of node i are `indptr[i] .. indptr[i + 1] - 1`.
            number: `[max(columns) + 1]`, the node of each column, or -1 to leave its edges out;
                without it, columns are nodes.
        """

        def rows(low: int, high: int) -> tuple[Int64, Array]:
            ends = indptr[low : high + 1] - indptr[low]
            found = columns[indptr[low] : indptr[high]]
            if number is None:
                return ends, found
            found = number[found]
            inside = found >= 0
            return pointers(inside)[ends], found[inside]

        return cls._collected(indptr, rows)

    def both_ways(self) -> Adjacency:
        """Return the adjacency of the same edges and their reverses."""
        num_nodes = len(self.begin) - 1
        starts, order = group_by(self.neighbour, num_nodes)
        row = np.repeat(np.arange(num_nodes, dtype=np.int32), np.diff(self.begin))
        reverse = row[order]
        del order, row

        def rows(low: int, high: int) -> tuple[Int64, Array]:
            ways = ((self.begin, self.neighbour), (starts, reverse))
            counts = [np.diff(begin[low : high + 1]) for begin, _ in ways]
            ends = pointers(counts[0] + counts[1])
            found = np.empty(int(ends[-1]), np.int32)
            at = ends[:-1]
            for count, (begin, columns) in zip(counts, ways, strict=True):
                place = np.repeat(at - pointers(count)[:-1], count)
                place += np.arange(len(place))
                found[place] = columns[begin[low] : begin[high]]
                at = at + count
            return ends, found

        return self._collected(self.begin + starts, rows)

    @classmethod
    def _collected(
        cls, indptr: Int64, rows: Callable[[int, int], tuple[Int64, Array]]
    ) -> Adjacency:
        """Return the adjacency of what `rows(low, high)` gives for rows `low .. high - 1`.

        `indptr`: upper bounds of the rows. Memory that is not written to takes no room.
        """
        begin = np.zeros(len(indptr), np.int64)
        neighbour = np.empty(int(indptr[-1]), np.int32)
        end = 0
        for low, high in row_windows(indptr):
            ends, found = rows(low, high)
            found, _ = sort_columns(ends, found.astype(np.int32, copy=False))
            new = np.ones(len(found), bool)
            new[1:] = found[1:] != found[:-1]
            new[ends[:-1][ends[:-1] < ends[1:]]] = True
            found = found[new]
            neighbour[end : end + len(found)] = found
            begin[low + 1 : high + 1] = end + pointers(new)[ends[1:]]
            end += len(found)
        neighbour.resize(end, refcheck=False)
        return cls(begin, neighbour)


def _self_loops(adjacency: Adjacency) -> Iterator[Int64]:
    """Yield the nodes with an edge to themselves, some at a time."""
    for low, high in row_windows(adjacency.begin):
        degree = np.diff(adjacency.begin[low : high + 1])
        row = np.repeat(np.arange(low, high), degree)
        yield row[row == adjacency.neighbour[adjacency.begin[low] : adjacency.begin[high]]]


def reverse_cuthill_mckee(adjacency: Adjacency) -> Array:
    """Return an order of a symmetric graph's nodes, int32 `[n]`, in which edges are short.

    The order is breadth-first from the node of least degree, neighbours by their degree (Cuthill,
    McKee 1969), reversed (George 1971). It takes the time of sorting each node's neighbours once.
    """
    num_nodes = len(adjacency.begin) - 1
    degree = np.diff(adjacency.begin).astype(np.int32)
    for looped in _self_loops(adjacency):
        degree[looped] += 1  # a self-loop counts twice
    seeds = np.argsort(degree).astype(np.int32)
    order = np.empty(num_nodes, np.int32)
    library().hpcgnn_reverse_cuthill_mckee(
        c_int64(num_nodes),
        address(adjacency.begin),
        address(adjacency.neighbour),
        address(degree),
        address(seeds),
        address(order),
    )
    return order
