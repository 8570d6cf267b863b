"""A 64-bit fingerprint of arrays that can be summed over slabs and ranks.

Each element contributes a hash of (dataset, index, bits); contributions are added modulo 2^64, so
the result does not depend on how the arrays were cut.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

MASK = (1 << 64) - 1
_BLOCK = 1 << 14
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def fingerprint(name: str, array: np.ndarray, first: int = 0) -> int:
    """Contribution of the rows `first ..` of dataset `name`, modulo 2^64.

    Args:
        name: dataset; the same values under another name have another fingerprint.
        array: `[n, ...]`, integers or floats; integers of any width with equal values agree.
        first: index of the array's first row in the dataset.
    """
    if array.dtype.kind == "S":
        array = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, -1)
    width = int(np.prod(array.shape[1:], dtype=np.int64))
    seed = np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))
    flat = np.ascontiguousarray(array).reshape(-1)
    total = 0
    for low in range(0, flat.size, _BLOCK):
        block = _bits(flat[low : low + _BLOCK])
        start = first * width + low
        index = np.arange(start, start + block.size, dtype=np.uint64)
        index += seed
        mix64(index)
        index ^= block
        mix64(index)
        total += int(index.sum(dtype=np.uint64))
    return total & MASK


def mix64(x: np.ndarray) -> None:
    """The finaliser of splitmix64, in place on uint64: a bijection that spreads every bit."""
    scratch = np.empty_like(x)
    x += _GOLDEN
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        np.right_shift(x, np.uint64(shift), out=scratch)
        x ^= scratch
        x *= factor
    np.right_shift(x, np.uint64(31), out=scratch)
    x ^= scratch


def to_hex(value: int) -> str:
    return f"{value & MASK:016x}"


def _bits(block: np.ndarray) -> np.ndarray:
    if block.dtype.kind == "f":
        return block.view(f"u{block.dtype.itemsize}").astype(np.uint64)
    return block.astype(np.int64).view(np.uint64)
