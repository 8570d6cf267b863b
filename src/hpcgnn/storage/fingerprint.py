"""A fingerprint of datasets that can be summed over chunks, parts and ranks."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_uint64
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from hpcgnn.native import address, open_library

LIBRARY = Path(__file__).with_name("libhpcgnn_storage.so")
MASK = (1 << 64) - 1


def fingerprint(name: str, array: np.ndarray, first: int = 0) -> int:
    """Return the contribution of the rows `first ..` of dataset `name`, modulo 2^64.

    It is the sum over entries k of mix(mix(seed of the name + k) ^ bits of entry k).

    Args:
        name: the dataset; the same values under another name have another fingerprint.
        array: `[n, ...]`, integers or floats; integers of any width with equal values agree.
        first: index of the array's first row in the dataset.
    """
    if array.dtype.kind == "S":
        array = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, -1)
    width = int(np.prod(array.shape[1:], dtype=np.int64))
    seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1)
    return _library().hpcgnn_fingerprint(
        address(flat),
        c_int64(flat.itemsize),
        c_int64(flat.dtype.kind == "i"),
        c_int64(flat.size),
        c_uint64((seed + first * width) & MASK),
    )


def mix64(x: np.ndarray) -> None:
    """Apply splitmix64's finaliser to uint64 `[n]` in place: a bijection that mixes all bits."""
    if x.dtype != np.uint64 or not x.flags.c_contiguous:
        raise TypeError(f"mix64 takes contiguous uint64, not {x.dtype}")
    _library().hpcgnn_mix(address(x), c_int64(x.size))


def to_hex(value: int) -> str:
    return f"{value & MASK:016x}"


@cache
def _library() -> ctypes.CDLL:
    library = open_library(LIBRARY)
    library.hpcgnn_fingerprint.restype = c_uint64
    return library
