"""Arrays that are in memory already, with the face of those in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive, ArraySource, rechunk
from hpcgnn.storage.importers.source import PIECE_BYTES


class MemoryArray(ArraySource):
    """An array that a file held; `member` is its name there."""

    def __init__(self, path: Path, member: str, values: np.ndarray) -> None:
        self.path = path
        self.member = member
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.fortran = False

    def flat(self, first: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        if self.dtype.kind not in "biuf":
            raise self.error("must hold numbers", str(self.dtype))
        values = np.ascontiguousarray(self.values).reshape(-1)
        values = values[first : None if count is None else first + count]
        yield from rechunk([values], max(1, PIECE_BYTES // self.dtype.itemsize))

    def load(self, limit: int) -> np.ndarray:
        return self.values

    def raw(self, limit: int) -> bytes:
        return self.values.tobytes()


class MemoryArchive(Archive):
    """Arrays by name.

    Args:
        others: what else was there, and can't be an array.
    """

    def __init__(
        self, path: Path, arrays: Mapping[str, np.ndarray], others: list[str] | None = None
    ) -> None:
        self.path = path
        self.names = list(arrays)
        self.others = list(others or [])
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> ArraySource:
        if name not in self._arrays:
            raise InputError("no such array in the file", file=self.path, dataset=name)
        return MemoryArray(self.path, name, self._arrays[name])
