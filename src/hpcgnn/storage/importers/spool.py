"""Long lists of records that are kept in memory while short, and in temporary files otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import OutputError
from hpcgnn.storage.importers.source import PIECE_BYTES
from hpcgnn.storage.write.atomic import claim_folder

_SAMPLES = 64


class Scratch:
    """A temporary folder beside `out`, removed at the end of the with-block, even after errors.

    Folders that killed processes left for the same `out` are removed first.

    Args:
        limit: bytes of records held and sorted in memory at a time.
    """

    def __init__(self, out: Path, limit: int) -> None:
        self.limit = limit
        self._made = 0
        self._claim = claim_folder(out)

    def __enter__(self) -> Scratch:
        self.folder = self._claim.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._claim.__exit__(*error)

    def records(
        self, dtype: np.dtype, buffer: int | None = None, expected: int | None = None
    ) -> Records:
        """Return an empty list of records, kept in memory up to `buffer` bytes.

        Args:
            expected: the number of records to come, for which one array is reserved if they fit.
        """
        self._made += 1
        path = self.folder / str(self._made)
        out = Records(path, dtype, self.limit if buffer is None else buffer)
        if expected is not None:
            out.expect(expected)
        return out


class Records:
    """A list of fixed-size records, in memory while it is small and otherwise in a file."""

    def __init__(self, path: Path, dtype: np.dtype, buffer: int) -> None:
        self.dtype = dtype
        self.count = 0
        self._path = path
        self._buffer_bytes = buffer
        self._held: list[np.ndarray] = []
        self._held_bytes = 0
        self._room = np.empty(0, dtype)  # reserved, filled from the first record on

    def expect(self, number: int) -> None:
        """Reserve an array for `number` records, if they may stay in memory.

        The system provides its memory as it fills.
        """
        if number * self.dtype.itemsize <= self._buffer_bytes:
            self._room = np.empty(number, self.dtype)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def place(self, number: int) -> np.ndarray:
        """Return an array for the next records, reserved if possible, to be filled and appended."""
        reserved = self._room[self.count : self.count + number]
        return reserved if reserved.shape[0] == number else np.empty(number, self.dtype)

    def append(self, records: np.ndarray) -> None:
        """Append these records, which the caller must not change afterwards."""
        if not records.shape[0]:
            return
        before, self.count = self.count, self.count + records.shape[0]
        if self.count <= self._room.shape[0]:
            place = self._room[before : self.count]
            if records.ctypes.data != place.ctypes.data:
                _copy(records, place)
            self._held, self._held_bytes = [self._room[: self.count]], self.nbytes
            return
        # A slice is copied, so that the array it is part of can be freed.
        whole = records.base is None and records.flags.c_contiguous
        self._held.append(records if whole else records.copy())
        self._held_bytes += records.nbytes
        if self._held_bytes > self._buffer_bytes:
            self.flush()

    def flush(self) -> None:
        """Move everything to the file."""
        if self._held:
            try:
                with self._path.open("ab") as file:
                    for records in self._held:
                        file.write(records.view(np.uint8).data)
            except OSError as error:
                raise OutputError(
                    f"can't write temporary data: {error.strerror}", file=self._path.parent
                ) from None
            self._held, self._held_bytes = [], 0
            self._room = np.empty(0, self.dtype)

    def chunks(self, nbytes: int = PIECE_BYTES) -> Iterator[np.ndarray]:
        """Yield the records in order, in arrays of at most `nbytes` that must not be changed."""
        rows = max(1, nbytes // self.dtype.itemsize)
        if self._path.exists():
            with self._path.open("rb") as file:
                while data := file.read(rows * self.dtype.itemsize):
                    yield np.frombuffer(data, self.dtype)
        waiting: list[np.ndarray] = []
        for records in self._held:  # join small ones
            if waiting and 4 * sum(one.shape[0] for one in waiting) >= rows:
                yield from _joined(waiting)
                waiting = []
            if sum(one.shape[0] for one in waiting) + records.shape[0] <= rows:
                waiting.append(records)
                continue
            yield from _joined(waiting)
            waiting = []
            for low in range(0, records.shape[0], rows):
                yield records[low : low + rows]
        yield from _joined(waiting)

    def load(self) -> np.ndarray:
        """Return all records in one array."""
        out = np.empty(self.count, self.dtype)
        first = self._read_into(out)
        for records in self._held:
            _copy(records, out[first : first + records.shape[0]])
            first += records.shape[0]
        return out

    def take(self) -> np.ndarray:
        """Return all records in one array, and drop them."""
        if self.count == self._room.shape[0]:
            out = self._room
            self.drop()
            return out
        out = np.empty(self.count, self.dtype)
        first = self._read_into(out)
        self._held.reverse()
        while self._held:  # each array is freed before the next is copied
            records = self._held.pop()
            _copy(records, out[first : first + records.shape[0]])
            first += records.shape[0]
        self.drop()
        return out

    def _read_into(self, out: np.ndarray) -> int:
        """Read the file's records into the beginning of `out`; return their number."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            return file.readinto(out.view(np.uint8).data) // self.dtype.itemsize

    def sample(self) -> np.ndarray:
        """Return some records from all over the file, which must have been flushed."""
        block = max(1, PIECE_BYTES // _SAMPLES // self.dtype.itemsize)
        out = []
        with self._path.open("rb") as file:
            for first in np.linspace(0, max(0, self.count - block), _SAMPLES, dtype=np.int64):
                file.seek(int(first) * self.dtype.itemsize)
                out.append(np.frombuffer(file.read(block * self.dtype.itemsize), self.dtype))
        return np.concatenate(out)

    def drop(self) -> None:
        """Delete all records, in memory and on disk."""
        self._held, self._held_bytes = [], 0
        self._room = np.empty(0, self.dtype)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _copy(records: np.ndarray, out: np.ndarray) -> None:
    """Copy records as bytes: NumPy copies them field by field, which takes six times as long."""
    out.view(np.uint8)[:] = np.ascontiguousarray(records).view(np.uint8)


def _joined(arrays: list[np.ndarray]) -> Iterator[np.ndarray]:
    if arrays:
        yield arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
