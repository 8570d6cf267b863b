"""Linear-time sorting and grouping of integers, and row pointers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Int64 = NDArray[np.int64]


def pointers(counts: Array) -> Int64:
    """`[0, c0, c0 + c1, ...]`: int64 of one more element than `counts`."""
    result = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def positions(count: int) -> Array:
    """0 .. count - 1, in 32 bits where they suffice."""
    return np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)


def edge_positions(indptr: Int64, rows: Array) -> Array:
    """Where the edges of `rows` lie, row after row: `[sum of their counts]`."""
    counts = indptr[rows + 1] - indptr[rows]
    starts = indptr[rows] - pointers(counts)[:-1]
    result = np.repeat(starts.astype(np.int32) if indptr[-1] < 2**31 else starts, counts)
    result += positions(len(result))
    return result


def group_by(keys: Array, num_keys: int) -> tuple[Array, Array]:
    """Stable counting sort: (first position of each key [num_keys + 1], order [len(keys)])."""
    from scipy.sparse import csr_array

    places = positions(len(keys))
    ends = np.array([0, len(keys)], places.dtype)
    grouped = csr_array(
        (places, keys.astype(places.dtype, copy=False), ends), shape=(1, num_keys)
    ).tocsc()
    return grouped.indptr, grouped.data


def sort_columns(indptr: Array, columns: Array, num_columns: int) -> tuple[Array, Array]:
    """Columns ascending in each row, and where each came from."""
    from scipy.sparse import csr_array

    places = positions(len(columns))
    rows = csr_array((places, columns.copy(), indptr), shape=(len(indptr) - 1, max(num_columns, 1)))
    rows.has_sorted_indices = False
    rows.sort_indices()
    return rows.indices, rows.data


def distinct(values: Array, bound: int) -> tuple[Int64, Array]:
    """Distinct values, ascending, and where each of `values` is among them.

    `values` lie in `0 .. bound - 1`. A table of the whole range is used while it is small beside
    `values`; where it is not, memory stays proportional to `values`.
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
    """The different keys, ascending, and how often each is there. Sorts `keys` itself."""
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1)) if len(keys) else keys[:0]
    return keys[first], np.diff(np.append(first, len(keys))).astype(np.int64)
