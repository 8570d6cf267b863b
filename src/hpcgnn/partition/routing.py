"""Exchange of rows between ranks while a graph is partitioned, and sorting of rows."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.native import address
from hpcgnn.partition.layout.library import library

Array = NDArray[Any]
Int64 = NDArray[np.int64]


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


@dataclass(frozen=True)
class Route:
    """The destinations of slab rows: the ranks that assemble their parts."""

    comm: Communicator
    order: Array  # slab rows, by destination rank
    cuts: Array  # [size + 1] into order

    @classmethod
    def to_parts(cls, comm: Communicator, owner: Array) -> Route:
        cuts, order = group_by(owner % comm.size, comm.size)
        return cls(comm, order, cuts)

    def rows(self, values: Array) -> Array:
        """Send a value (or row of an array) per slab row; return arrivals by ascending row."""
        chunks = [values[self.order[a:b]] for a, b in self._ranges()]
        return np.concatenate(self.comm.alltoallv(chunks, where="partition: distribute rows"))

    def ragged(self, indptr: Int64, values: Array) -> Array:
        """Send `indptr[i+1] - indptr[i]` values per slab row i; return arrivals as `rows` does."""
        chunks = [values[edge_positions(indptr, self.order[a:b])] for a, b in self._ranges()]
        return np.concatenate(self.comm.alltoallv(chunks, where="partition: distribute edges"))

    def _ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.cuts[:-1].tolist(), self.cuts[1:].tolist(), strict=True))


def between_parts(
    comm: Communicator,
    num_parts: int,
    values: Sequence[Array],
    counts: Sequence[Int64],
    template: Array,
) -> tuple[list[Array], list[Int64]]:
    """Exchange values among parts. Collective.

    `values[k]`, of this rank's k-th part, is sorted by target part; `counts[k][q]` of them go to
    part q. Returns the same for arrivals: per local part the values in the order of the parts they
    come from, and the number from each. `template` is an empty array of the common dtype and
    trailing shape.
    """
    size, parts = comm.size, local_parts(comm, num_parts)
    table = np.array(counts, np.int64).reshape(len(parts), num_parts)
    starts = [pointers(row) for row in table]
    bodies = []
    for rank in range(size):
        chunks = [
            values[k][starts[k][q] : starts[k][q + 1]]
            for k in range(len(parts))
            for q in range(rank, num_parts, size)
        ]
        bodies.append(np.concatenate([template, *chunks]))
    heads = [np.ascontiguousarray(table[:, rank::size]).ravel() for rank in range(size)]
    heads = comm.alltoallv(heads, where="partition: exchange among parts")
    bodies = comm.alltoallv(bodies, where="partition: exchange among parts")

    arrived = np.empty((len(parts), num_parts), np.int64)
    chunks_of: list[list[Array]] = [[template] * num_parts for _ in parts]
    for rank in range(size):
        head = heads[rank].reshape(len(range(rank, num_parts, size)), len(parts))
        arrived[:, rank::size] = head.T
        cuts = pointers(head.ravel())
        position = 0
        for p in range(rank, num_parts, size):
            for k in range(len(parts)):
                chunks_of[k][p] = bodies[rank][cuts[position] : cuts[position + 1]]
                position += 1
    return [np.concatenate([template, *chunks]) for chunks in chunks_of], list(arrived)
