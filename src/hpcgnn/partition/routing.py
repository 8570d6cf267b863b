"""Exchange of rows between ranks while a graph is partitioned, and sorting of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import c_int64
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.native import address
from hpcgnn.partition.layout.library import library
from hpcgnn.sorting import sorted_unique

Array = NDArray[Any]
Int64 = NDArray[np.int64]
ROWS = 1 << 16  # rows, or edges, of a window that stays on its rank


def pointers(counts: Array) -> Int64:
    """Return `[0, c0, c0 + c1, ...]`: int64, one element more than `counts`."""
    result = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def positions_type(count: int) -> type[np.signedinteger]:
    """Return the type of the positions 0 .. count - 1: 32 bits if these suffice."""
    return np.int32 if count < 2**31 else np.int64


def positions(count: int) -> Array:
    """Return 0 .. count - 1, in 32 bits if these suffice."""
    return np.arange(count, dtype=positions_type(count))


def edge_positions(indptr: Int64, rows: Array) -> Array:
    """Return the positions of the edges of `rows`, row by row: `[sum of their counts]`."""
    counts = indptr[rows + 1] - indptr[rows]
    starts = indptr[rows] - pointers(counts)[:-1]
    result = np.repeat(starts.astype(np.int32) if indptr[-1] < 2**31 else starts, counts)
    result += positions(len(result))
    return result


def group_by(keys: Array, num_keys: int) -> tuple[Int64, Array]:
    """Sort stably by counting; return each key's first position [num_keys + 1] and the order.

    The order is [len(keys)].
    """
    order = np.empty(len(keys), positions_type(len(keys)))
    starts = np.empty(num_keys + 1, np.int64)
    keys = np.ascontiguousarray(keys, order.dtype)
    library().hpcgnn_group_by(
        address(keys),
        c_int64(keys.itemsize == 8),
        c_int64(len(keys)),
        c_int64(num_keys),
        address(starts),
        address(order),
    )
    return starts, order


def sort_columns(indptr: Array, columns: Array) -> tuple[Array, Array]:
    """Sort columns in each row, stably; return them and the position that each came from."""
    indptr = np.ascontiguousarray(indptr, np.int64)
    wide = columns.itemsize == 8 or len(columns) >= 2**31
    columns = np.array(columns, np.int64 if wide else np.int32)
    places = np.empty_like(columns)
    library().hpcgnn_sort_columns(
        address(indptr), c_int64(len(indptr) - 1), address(columns), address(places), c_int64(wide)
    )
    return columns, places


def distinct(values: Array, bound: int) -> tuple[Int64, Array]:
    """Return the distinct values, ascending, and the position of each of `values` among them.

    `values` lie in `0 .. bound - 1`. A table of the whole range is used if it is small relative to
    `values`; otherwise memory stays proportional to `values`.
    """
    if bound > 8 * len(values) + 2**16:
        found, inverse = np.unique(values, return_inverse=True)
        return found.astype(np.int64), inverse
    seen = np.zeros(bound, bool)
    seen[values] = True
    found = np.flatnonzero(seen)
    place = np.empty(bound, np.int32 if len(found) < 2**31 else np.int64)
    place[found] = positions(len(found))
    return found, place[values]


def renumber(values: Array, bound: int) -> Int64:
    """Return the distinct values, ascending; replace each of `values` by its position there.

    The values lie in `0 .. bound - 1`.
    """
    table = bound <= len(values) + 2**16
    if table:
        seen = np.zeros(bound, bool)
        for low in range(0, len(values), ROWS):
            seen[values[low : low + ROWS]] = True
        found = np.flatnonzero(seen)
        del seen
        place = np.empty(bound, positions_type(len(found)))
        place[found] = positions(len(found))
    else:
        found = sorted_unique(values)
    for low in range(0, len(values), ROWS):
        window = values[low : low + ROWS]
        values[low : low + ROWS] = place[window] if table else np.searchsorted(found, window)
    return found.astype(np.int64, copy=False)


def row_windows(indptr: Int64) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows with at most ROWS edges and rows; a longer row is one by itself."""
    low, rows = 0, len(indptr) - 1
    while low < rows:
        high = int(np.searchsorted(indptr, indptr[low] + ROWS, side="right")) - 1
        high = min(max(high, low + 1), low + ROWS, rows)
        yield low, high
        low = high


def tally(keys: Array) -> tuple[Array, Int64]:
    """Return the distinct keys, ascending, and the count of each. Sorts `keys` in place."""
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1)) if len(keys) else keys[:0]
    return keys[first], np.diff(np.append(first, len(keys))).astype(np.int64)


def local_parts(comm: Communicator, num_parts: int) -> range:
    """Return the parts that this rank assembles."""
    return range(comm.rank, num_parts, comm.size)


class Slabs:
    """The distribution of the graph over the ranks, which hold consecutive rows.

    Raises:
        InputError: the slabs, in the order of the ranks, do not cover `0 .. num_nodes - 1`.
    """

    def __init__(self, comm: Communicator, low: int, high: int, num_nodes: int) -> None:
        bounds = comm.allgather((int(low), int(high)))
        self._comm, self.low, self.high = comm, low, high
        self.ends: Int64 = np.array([high for _, high in bounds], np.int64)
        reached = 0
        for rank, (start, end) in enumerate(bounds):
            if start != reached or end < start:
                raise InputError(
                    f"slabs must follow each other: expected one from row {reached}",
                    value=(start, end),
                    rank=rank,
                )
            reached = end
        if reached != num_nodes:
            raise InputError(f"slabs end at row {reached} of {num_nodes}")

    def lookup(self, ids: Int64, values: Array) -> Array:
        """Return `values` (one per row of every rank's own slab) at `ids` (ascending): [len(ids)].

        Collective.
        """
        cuts = np.searchsorted(ids, self.ends)
        wanted = self._comm.alltoallv(np.split(ids, cuts[:-1]), where="partition: look up rows")
        answers = [values[rows - self.low] for rows in wanted]
        return np.concatenate(self._comm.alltoallv(answers, where="partition: answer look-ups"))


class Route:
    """The way of the rows of slabs to the ranks that assemble their parts.

    On each rank the rows arrive in ascending order: `count` rows, `first[s]` of them from ranks
    before s.
    """

    def __init__(self, comm: Communicator, owner: Array) -> None:
        """Args: owner: the part of each row of the slab. Collective."""
        self.comm, self.owner = comm, owner
        sent = np.zeros(comm.size, np.int64)
        for low in range(0, len(owner), ROWS):
            sent += np.bincount(owner[low : low + ROWS] % comm.size, minlength=comm.size)
        counts = comm.alltoallv(np.split(sent, comm.size), where="partition: count rows")
        self.first = pointers(np.concatenate(counts))
        self.count = int(self.first[-1])

    def parcels(self, bounds: Int64) -> Iterator[Parcel]:
        """Yield the rows of the slab in windows `bounds[k] .. bounds[k + 1] - 1`. Collective.

        All ranks have equally many windows.
        """
        cursor = self.first[:-1].copy()
        for low, high in pairwise(bounds.tolist()):
            cuts, order = group_by(self.owner[low:high] % self.comm.size, self.comm.size)
            told = np.split(np.diff(cuts), self.comm.size)
            counts = np.concatenate(self.comm.alltoallv(told, where="partition: count rows"))
            arrived = np.repeat(cursor - pointers(counts)[:-1], counts) + np.arange(counts.sum())
            cursor += counts
            yield Parcel(self.comm, low, high, order, cuts, arrived)


@dataclass(frozen=True)
class Parcel:
    """A window of slab rows on its way to other ranks, and what arrives from theirs.

    low, high: the rows of the slab, from 0.
    order, cuts: the window's rows by destination rank, and where each rank's begin.
    arrived: the positions of the rows that arrive, among all that arrive on this rank.
    """

    comm: Communicator
    low: int
    high: int
    order: Array
    cuts: Int64
    arrived: Int64

    def rows(self, values: Array) -> Array:
        """Send a value (or row of an array) per row of the window; return those that arrive."""
        chunks = [values[self.order[a:b]] for a, b in pairwise(self.cuts.tolist())]
        return _joined(self.comm.alltoallv(chunks, where="partition: distribute rows"))

    def ragged(self, indptr: Int64, values: Array) -> Array:
        """Send `indptr[i+1] - indptr[i]` values for each row i of the window, likewise."""
        chunks = [
            values[edge_positions(indptr, self.order[a:b])] for a, b in pairwise(self.cuts.tolist())
        ]
        return _joined(self.comm.alltoallv(chunks, where="partition: distribute edges"))


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def between_parts(
    comm: Communicator, num_parts: int, values: Sequence[Sequence[Array]], template: Array
) -> list[list[Array]]:
    """Exchange arrays among parts. Collective.

    `values[k][q]`, of this rank's k-th part, goes to part q. Returns the same for arrivals: per
    local part an array from each part. `template` is an empty array of the common dtype and
    trailing shape.
    """
    size, parts = comm.size, local_parts(comm, num_parts)
    heads, bodies = [], []
    for rank in range(size):
        chunks = [values[k][q] for k in range(len(parts)) for q in range(rank, num_parts, size)]
        heads.append(np.array([len(chunk) for chunk in chunks], np.int64))
        bodies.append(_joined(chunks) if chunks else template)
    heads = comm.alltoallv(heads, where="partition: exchange among parts")
    bodies = comm.alltoallv(bodies, where="partition: exchange among parts")
    arrived: list[list[Array]] = [[template] * num_parts for _ in parts]
    for rank in range(size):
        cuts = pairwise(pointers(heads[rank]).tolist())
        for p in range(rank, num_parts, size):
            for k in range(len(parts)):
                low, high = next(cuts)
                arrived[k][p] = bodies[rank][low:high]
    return arrived
