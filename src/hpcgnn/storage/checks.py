"""Checks of arrays, in blocks, so that they cost no memory; a fingerprint that sums over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError

MASK = (1 << 64) - 1
_SUMMED = 1 << 14
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_BLOCK = 1 << 18


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
    for low in range(0, flat.size, _SUMMED):
        block = _bits(flat[low : low + _SUMMED])
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


@dataclass(frozen=True)
class Place:
    """Where an array comes from: file, dataset, and the index of its first row there."""

    file: Path | str
    dataset: str
    first: int = 0

    def below(self, name: str) -> Place:
        """A dataset in the group that this place names."""
        return Place(self.file, f"{self.dataset}/{name}")

    def error(self, message: str, value: object = None) -> InputError:
        if isinstance(value, np.generic):
            value = value.item()
        return InputError(message, file=self.file, dataset=self.dataset, value=value)


def in_range(values: np.ndarray, low: int, high: int, place: Place) -> None:
    """All integers in `low .. high - 1`."""
    if values.size == 0 or (int(values.min()) >= low and int(values.max()) < high):
        return
    bad = (values < low) | (values >= high)
    row = np.unravel_index(int(np.argmax(bad)), values.shape)
    raise place.error(f"entry {place.first + row[0]} must lie in {low} .. {high - 1}", values[row])


def finite(values: np.ndarray, place: Place, *, or_nan: bool = False) -> None:
    """No infinity, and no NaN unless `or_nan`."""
    for low, block in _blocks(values):
        good = ~np.isinf(block) if or_nan else np.isfinite(block)
        if not good.all():
            row = np.unravel_index(int(np.argmin(good)), block.shape)
            raise place.error(
                f"row {place.first + low + row[0]} has a value that is not finite", block[row]
            )


def pointers(values: np.ndarray, total: int, place: Place) -> None:
    """Row pointers that start at 0, never fall, and end at `total`."""
    if values.size == 0 or values[0] != 0:
        raise place.error("must start at 0", values[0] if values.size else None)
    monotone(values, place)
    if values[-1] != total:
        raise place.error(f"must end at {total}", values[-1])


def monotone(values: np.ndarray, place: Place, *, strictly: bool = False) -> None:
    """Each value at least (strictly: above) the one before."""
    for low in range(0, values.size - 1, _BLOCK):
        block = values[low : low + _BLOCK + 1]
        falls = block[1:] <= block[:-1] if strictly else block[1:] < block[:-1]
        if falls.any():
            at = int(np.argmax(falls)) + 1
            word = "rise" if strictly else "not fall"
            raise place.error(f"must {word} at entry {place.first + low + at}", block[at])


def ascending_in_rows(values: np.ndarray, starts: np.ndarray, place: Place) -> None:
    """Never falls except at the given ascending `starts` of rows."""
    for low in range(0, values.size - 1, _BLOCK):
        block = values[low : low + _BLOCK + 1]
        falls = np.flatnonzero(block[1:] < block[:-1]) + 1 + low
        at = np.searchsorted(starts, falls)
        inside = starts[np.minimum(at, starts.size - 1)] != falls
        if inside.any():
            entry = int(falls[np.argmax(inside)])
            raise place.error(f"must not fall within a row, at entry {entry}", values[entry])


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, _BLOCK // max(1, int(np.prod(values.shape[1:], dtype=np.int64))))
    for low in range(0, values.shape[0], rows):
        yield low, values[low : low + rows]


def nesting(value: Any, most: int) -> int:
    """How many lists or dictionaries lie in each other; above `most` it doesn't matter how many."""
    layer: list[Any] = [value]
    depth = 0
    while depth <= most:
        layer = [v for v in layer if isinstance(v, dict | list)]
        if not layer:
            break
        layer = [v for one in layer for v in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth
