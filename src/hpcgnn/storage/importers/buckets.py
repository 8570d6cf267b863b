"""Sorting of many numbers bucket by bucket: each is sorted while the one before it is used."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64
from functools import cache

import numpy as np

from hpcgnn.native import address, open_library
from hpcgnn.storage.fingerprint import LIBRARY

_PIECE = 1 << 16  # numbers that are moved to buckets within the cache
_BITS = 8  # of the leading bits, which give the bucket
_SAMPLES = 1 << 12
_THREADS = 2


def in_buckets(numbers: np.ndarray, low_bits: int, limit: int) -> Iterator[np.ndarray]:
    """Yield int64 numbers from 0 in ascending order, which are overwritten, in several arrays.

    Numbers that differ in the lowest `low_bits` bits alone are in the same array.

    Args:
        limit: bytes of one bucket; if one is larger, all are sorted in place.
    """
    largest = int(numbers[:: max(1, numbers.shape[0] // _SAMPLES)].max(initial=0))
    shift = max(low_bits, largest.bit_length() - _BITS)
    count = (largest >> shift) + 1  # larger numbers belong to the last bucket, too
    starts = _scattered(numbers, shift, count)
    sizes = np.diff(starts, axis=1).sum(axis=0, dtype=np.int64)
    if 8 * int(sizes.max(initial=0)) > limit:
        numbers.sort()
        yield numbers
        return
    for bucket in np.flatnonzero(sizes).tolist():
        out = np.empty(sizes[bucket], np.int64)
        _library().hpcgnn_gather(
            address(numbers),
            c_int64(starts.shape[0]),
            c_int64(_PIECE),
            c_int64(count),
            address(starts),
            c_int64(bucket),
            address(out),
        )
        out.sort()
        yield out


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
