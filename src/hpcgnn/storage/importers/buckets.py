"""Sorting of many numbers bucket by bucket: the next ones are sorted while one is used."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64
from functools import cache

import numpy as np

from hpcgnn.native import address, open_library
from hpcgnn.storage.fingerprint import LIBRARY
from hpcgnn.storage.importers.ahead import each_ahead

_PIECE = 1 << 17  # numbers that are moved to buckets within the cache
_IN_CACHE = 1 << 14  # numbers in a bucket at least, twice as many fit the cache
_MOST_BITS = 12  # of the leading bits, which give the bucket
_SAMPLES = 1 << 12
_TOGETHER = 1 << 16  # numbers of the buckets that are sorted by one call
_LARGEST = 1 << 31  # numbers in a bucket at most: they are counted in 32 bits
_THREADS = 2


def in_buckets(numbers: np.ndarray, low_bits: int, limit: int) -> Iterator[np.ndarray]:
    """Yield int64 numbers from 0 in ascending order, which are overwritten, in several arrays.

    Numbers that differ in the lowest `low_bits` bits alone are in the same array.

    Args:
        limit: bytes of one bucket; if one is larger, or too long, all are sorted in place.
    """
    largest = int(numbers[:: max(1, numbers.shape[0] // _SAMPLES)].max(initial=0))
    bits = min(_MOST_BITS, (numbers.shape[0] // _IN_CACHE | 1).bit_length() - 1)
    shift = max(low_bits, largest.bit_length() - bits)
    count = (largest >> shift) + 1  # larger numbers belong to the last bucket, too
    starts = _scattered(numbers, shift, count)
    sizes = np.diff(starts.sum(axis=0, dtype=np.int64))
    if int(sizes.max(initial=0)) > min(_LARGEST, limit // 8):
        numbers.sort()
        yield numbers
        return

    def sort(bounds: tuple[int, int]) -> np.ndarray:
        first, last = bounds
        out = np.empty(sizes[first:last].sum(), np.int64)
        room = np.empty(sizes[first:last].max(), np.int64)
        _library().hpcgnn_sort_buckets(
            address(numbers),
            c_int64(starts.shape[0]),
            c_int64(_PIECE),
            c_int64(count),
            address(starts),
            c_int64(first),
            c_int64(last),
            address(room),
            address(out),
        )
        return out

    yield from each_ahead(sort, _groups(sizes), _THREADS)


def _groups(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Return ranges of buckets, each of about `_TOGETHER` numbers or one bucket."""
    before = np.cumsum(sizes) - sizes
    firsts = np.flatnonzero(np.diff(before // _TOGETHER, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], sizes.shape[0]], strict=True))


def _scattered(numbers: np.ndarray, shift: int, count: int) -> np.ndarray:
    """Order each piece of the numbers by bucket; return int32 [pieces, count + 1] starts."""
    pieces = -(-numbers.shape[0] // _PIECE)
    starts = np.empty((pieces, count + 1), np.int32)

    def scatter(first: int, last: int) -> None:
        part, room = numbers[first * _PIECE : last * _PIECE], np.empty(_PIECE, np.int64)
        _library().hpcgnn_scatter(
            address(part),
            c_int64(part.shape[0]),
            c_int64(_PIECE),
            c_int64(shift),
            c_int64(count),
            address(room),
            address(starts[first:last]),
        )

    bounds = [pieces * k // _THREADS for k in range(_THREADS + 1)]
    with ThreadPoolExecutor(_THREADS, "scatter") as pool:
        list(pool.map(scatter, bounds[:-1], bounds[1:]))
    return starts


@cache
def _library() -> ctypes.CDLL:
    return open_library(LIBRARY)
