"""Checks of arrays, done in blocks so that they need little memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Place:
    """The origin of an array: file, dataset, and the index of its first row there."""

    file: Path | str
    dataset: str
    first: int = 0

    def below(self, name: str) -> Place:
        """Return the place of a dataset in the group that this place names."""
        return Place(self.file, f"{self.dataset}/{name}")

    def error(self, message: str, value: object = None) -> InputError:
        if isinstance(value, np.generic):
            value = value.item()
        return InputError(message, file=self.file, dataset=self.dataset, value=value)


def in_range(values: np.ndarray, low: int, high: int, place: Place) -> None:
    """Check that all integers lie in `low .. high - 1`."""
    if values.size == 0 or (int(values.min()) >= low and int(values.max()) < high):
        return
    bad = (values < low) | (values >= high)
    row = np.unravel_index(int(np.argmax(bad)), values.shape)
    raise place.error(f"entry {place.first + row[0]} must lie in {low} .. {high - 1}", values[row])


def finite(values: np.ndarray, place: Place, *, or_nan: bool = False) -> None:
    """Check that there is no infinity, and no NaN unless `or_nan`."""
    for low, block in _blocks(values):
        good = ~np.isinf(block) if or_nan else np.isfinite(block)
        if not good.all():
            row = np.unravel_index(int(np.argmin(good)), block.shape)
            raise place.error(
                f"row {place.first + low + row[0]} has a value that is not finite", block[row]
            )


def pointers(values: np.ndarray, total: int, place: Place) -> None:
    """Check row pointers: they start at 0, never decrease, and end at `total`."""
    if values.size == 0 or values[0] != 0:
        raise place.error("must start at 0", values[0] if values.size else None)
    monotone(values, place)
    if values[-1] != total:
        raise place.error(f"must end at {total}", values[-1])


def monotone(values: np.ndarray, place: Place, *, strictly: bool = False) -> None:
    """Check that no value is less than the one before it (`strictly`: that each is greater)."""
    for low in range(0, values.size - 1, _BLOCK):
        block = values[low : low + _BLOCK + 1]
        falls = block[1:] <= block[:-1] if strictly else block[1:] < block[:-1]
        if falls.any():
            at = int(np.argmax(falls)) + 1
            word = "rise" if strictly else "not fall"
            raise place.error(f"must {word} at entry {place.first + low + at}", block[at])


def ascending_in_rows(values: np.ndarray, starts: np.ndarray, place: Place) -> None:
    """Check that values never decrease, except at the given ascending `starts` of rows."""
    for low in range(0, values.size - 1, _BLOCK):
        block = values[low : low + _BLOCK + 1]
        falls = np.flatnonzero(block[1:] < block[:-1]) + 1 + low
        at = np.searchsorted(starts, falls.astype(starts.dtype, copy=False))
        inside = starts[np.minimum(at, starts.size - 1)] != falls
        if inside.any():
            entry = int(falls[np.argmax(inside)])
            raise place.error(f"must not fall within a row, at entry {entry}", values[entry])


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, _BLOCK // max(1, int(np.prod(values.shape[1:], dtype=np.int64))))
    for low in range(0, values.shape[0], rows):
        yield low, values[low : low + rows]


def nesting(value: Any, most: int) -> int:
    """Return how deeply lists and dictionaries are nested; beyond `most`, counting stops."""
    layer: list[Any] = [value]
    depth = 0
    while depth <= most:
        layer = [v for v in layer if isinstance(v, dict | list)]
        if not layer:
            break
        layer = [v for one in layer for v in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth
