"""The edges into a rank's rows, read from storage one window at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.routing import Array, Int64, distinct, group_by, pointers, sort_columns
from hpcgnn.storage.fingerprint import mix64

WINDOW = 1 << 21  # edges


@dataclass(frozen=True)
class Window:
    """Rows `lo .. hi - 1` and the edges into them: `row`, from 0, and `source`, both `[E]`."""

    lo: int
    hi: int
    row: Array
    source: Array


@dataclass(frozen=True)
class SlabEdges:
    """The in-neighbour lists of rows `lo .. hi - 1` of a graph.

    Attributes:
        indptr: int64 `[hi - lo + 1]`, from 0.
        read: `read(a, b)` returns the sources of the edges into rows `a .. b - 1`, row by row; the
            rows lie within `lo .. hi`. Its results are not kept.
    """

    lo: int
    hi: int
    indptr: Int64
    read: Callable[[int, int], Array]

    @property
    def count(self) -> int:
        return int(self.indptr[-1])

    def window(self, lo: int, hi: int) -> Window:
        """Return the window of rows `lo .. hi - 1` of the graph."""
        degree = np.diff(self.indptr[lo - self.lo : hi - self.lo + 1])
        row = np.repeat(np.arange(hi - lo, dtype=np.int32), degree)
        return Window(lo, hi, row, self.read(lo, hi) if lo < hi else np.empty(0, np.int64))

    def windows(self, comm: Communicator, least: int = 1, most: int = WINDOW) -> Iterator[Window]:
        """Yield all rows in windows of about equal rows and edges, equally many on every rank.

        Collective.

        Args:
            least: least number of windows, if a rank has that many rows.
            most: most rows and edges of a window; a row with more is a window by itself.
        """
        bounds = window_bounds(comm, self.indptr, least, most)
        for low, high in pairwise(bounds.tolist()):
            yield self.window(self.lo + low, self.lo + high)


def window_bounds(comm: Communicator, indptr: Int64, least: int = 1, most: int = WINDOW) -> Int64:
    """Return the bounds of the windows that `SlabEdges.windows` yields, from 0. Collective."""
    last = len(indptr) - 1
    whole = int(indptr[-1]) + last
    count = comm.allreduce(max(min(least, last), -(-whole // most), 1), op="max")
    wanted = whole * np.arange(count + 1) // count
    bounds, high = np.zeros(count + 1, np.int64), np.full(count + 1, last)
    while (bounds < high).any():  # the first row with the wanted rows and edges before it
        middle = (bounds + high) // 2
        below = indptr[middle] + middle < wanted
        bounds, high = np.where(below, middle + 1, bounds), np.where(below, high, middle)
    bounds[-1] = last
    return bounds


def by_rank(comm: Communicator, rank: Array, *columns: Array, where: str) -> list[Array]:
    """Send rows of `columns` to the ranks given by `rank`; return what arrives, by column."""
    cuts, order = group_by(rank, comm.size)
    return [
        np.concatenate(comm.alltoallv(np.split(values[order], cuts[1:-1]), where=where))
        for values in columns
    ]


def most_neighbours(comm: Communicator, edges: SlabEdges) -> int:
    """Return the most entries that `neighbours` can have over all ranks. Collective.

    Without self-loops, it is twice the number of edges, or once if the graph is symmetric, which is
    found by comparing sums of hashes of both directions.
    """
    count = balance = 0
    for window in edges.windows(comm):
        row = window.row + np.int64(window.lo)
        apart = window.source != row
        pair = np.sort(np.stack([row[apart], window.source[apart]]), axis=0).astype(np.uint64)
        mix64(pair[0])
        key = pair[0] + pair[1]
        mix64(key)
        up = window.source[apart] < row[apart]
        balance += int(key[up].sum()) - int(key[~up].sum())
        count += len(key)
    total = sum(comm.allgather(balance, where="partition: symmetry")) % 2**64
    return comm.allreduce(count) * (1 if total == 0 else 2)


def neighbours(
    comm: Communicator, edges: SlabEdges, bounds: Int64, dtype: type[np.integer] = np.int64
) -> tuple[Int64, Array]:
    """Return neighbours of rows `bounds[rank] .. bounds[rank + 1] - 1`, ascending. Collective.

    Beside the result, a rank holds a window, and the duplicate edges until they are removed.

    Args:
        edges: the edges into this rank's rows, in one direction or both.
        bounds: int64 `[size + 1]`, the rows that each rank is to hold: all rows of the graph or a
            range, whatever rows the ranks have edges of.
        dtype: dtype of the neighbours.

    Returns:
        `indptr` int64 `[rows + 1]` and the neighbours, one entry for each direction of each edge
        that isn't a self-loop.
    """
    count = int(bounds[comm.rank + 1] - bounds[comm.rank])
    degree = np.zeros(count, np.int64)
    for row, _ in _arrivals(comm, edges, bounds, np.int32):
        ids, place = distinct(row, count)
        degree[ids] += np.bincount(place, minlength=len(ids))
    cursor = pointers(degree)
    found = np.empty(int(cursor[-1]), dtype)
    indptr, cursor = cursor, cursor[:-1].copy()
    for row, column in _arrivals(comm, edges, bounds, dtype):
        ids, place = distinct(row, count)
        starts, order = group_by(place, len(ids))
        degree = np.diff(starts)
        target = np.repeat(cursor[ids] - starts[:-1], degree)
        target += np.arange(len(target))
        found[target] = column[order]
        cursor[ids] += degree
    return _deduplicate(indptr, found)


def _arrivals(
    comm: Communicator, edges: SlabEdges, bounds: Int64, dtype: type[np.integer]
) -> Iterator[tuple[Array, Array]]:
    """Yield both directions of all ranks' edges as (row from 0, column), in this rank's bounds."""
    low = int(bounds[comm.rank])
    for window in edges.windows(comm):
        here = window.row + window.lo
        apart = window.source != here
        ends = here[apart], window.source[apart]
        row, column = np.concatenate(ends), np.concatenate(ends[::-1])
        inside = (row >= bounds[0]) & (row < bounds[-1])
        row, column = row[inside], column[inside].astype(dtype)
        rank = np.searchsorted(bounds[1:], row, side="right")
        row, column = by_rank(comm, rank, row, column, where="partition: symmetrise")
        yield row - low, column


def _deduplicate(indptr: Int64, columns: Array) -> tuple[Int64, Array]:
    """Sort columns and remove duplicates in place, a window of rows at a time."""
    kept = np.zeros(len(indptr), np.int64)
    end, low, rows = 0, 0, len(indptr) - 1
    while low < rows:
        high = int(np.searchsorted(indptr, indptr[low] + WINDOW, side="right")) - 1
        high = min(max(high, low + 1), rows)
        starts = indptr[low : high + 1] - indptr[low]
        chunk, _ = sort_columns(starts, columns[indptr[low] : indptr[high]])
        row = np.repeat(np.arange(high - low), np.diff(starts))
        new = np.ones(len(chunk), bool)
        new[1:] = (chunk[1:] != chunk[:-1]) | (row[1:] != row[:-1])
        chunk = chunk[new]
        columns[end : end + len(chunk)] = chunk
        kept[low + 1 : high + 1] = np.bincount(row[new], minlength=high - low)
        end, low = end + len(chunk), high
    columns.resize(end, refcheck=False)
    return np.cumsum(kept), columns
