"""NumPy arrays from .npy files, .npz members or memory, read in order and never unpickled."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from hpcgnn.errors import InputError, human
from hpcgnn.storage.importers.opening import DAMAGED, check_inflation, open_file, open_zip, require
from hpcgnn.storage.importers.source import PIECE_BYTES, Column

_HEADERS = {  # by version: bytes of the leading length field, and the reader
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
_LONGEST_HEADER = 10_000
_MAX_DIMENSIONS = 8
_MAX_BYTES = 1 << 60


class ArraySource:
    """An array in a file: shape and dtype are read at once, values on request.

    Args:
        path: a .npy file, or an .npz file together with the name of a `member`.

    Raises:
        InputError: the file can't be read, is no array, or is an array of Python objects.
    """

    def __init__(self, path: Path, member: str | None = None) -> None:
        self.path = path
        self.member = member
        with self._open() as file:
            self.shape, self.fortran, self.dtype = self._header(file)
            self._check_size(file)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def error(self, message: str, value: object = None) -> InputError:
        return InputError(message, file=self.path, dataset=self.member, value=value)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        if self.member is None:
            with open_file(self.path) as file:
                yield file
        else:
            with open_zip(self.path) as archive, archive.open(f"{self.member}.npy") as member:
                yield cast(BinaryIO, member)

    def _header(self, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
        try:
            width, read = _HEADERS[np.lib.format.read_magic(file)]
            start = file.read(width)
            length = int.from_bytes(start, "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about headers of Python 2
                shape, fortran, dtype = read(io.BytesIO(start + file.read(length)))
        except (OSError, *DAMAGED):
            raise
        except Exception as error:  # the header is a Python literal and may hold anything
            reason = " ".join(str(error).split())[:120]
            raise self.error(f"is not a NumPy array file: {reason}") from None
        if dtype.hasobject:
            raise self.error("holds Python objects, which are not read: store plain numbers")
        if any(length < 0 for length in shape) or dtype.names or dtype.shape or not dtype.itemsize:
            raise self.error("must be a plain array of numbers", str(dtype))
        if len(shape) > _MAX_DIMENSIONS:
            raise self.error(f"must have at most {_MAX_DIMENSIONS} dimensions", len(shape))
        if prod(max(1, length) for length in shape) * dtype.itemsize >= _MAX_BYTES:
            raise self.error("must be a plain array of numbers", str(shape)[:60])
        return shape, fortran and len(shape) > 1, dtype

    def _begin(self, file: BinaryIO) -> None:
        """Go to the array's values, if the file is still as it was when it was first opened."""
        if self._header(file) != (self.shape, self.fortran, self.dtype):
            raise self.error("has been replaced while it was read: convert it when it is complete")

    def _check_size(self, file: BinaryIO) -> None:
        """Check that the file holds exactly the bytes that its header announces."""
        if self.member is None:
            stored = os.fstat(file.fileno()).st_size
        else:
            with open_zip(self.path) as archive:
                info = archive.getinfo(f"{self.member}.npy")
            stored = info.file_size
            check_inflation(self.path, info.compress_size, stored, self.member)
        held, needed = stored - file.tell(), prod(self.shape) * self.dtype.itemsize
        if held < needed:
            raise self._truncated()
        if held > needed:
            raise self.error(
                f"continues after the array of shape {self.shape} that its header announces", held
            )

    def _truncated(self) -> InputError:
        return self.error(f"is truncated: its header announces shape {self.shape}")

    def flat(
        self, first: int = 0, count: int | None = None, nbytes: int = PIECE_BYTES
    ) -> Iterator[np.ndarray]:
        """Yield `count` items from item `first` on, in file order, in chunks of `nbytes` bytes."""
        if self.dtype.kind not in "biuf":
            raise self.error("must hold numbers", str(self.dtype))
        left = (prod(self.shape) - first if count is None else count) * self.dtype.itemsize
        step = nbytes // self.dtype.itemsize * self.dtype.itemsize
        with self._open() as file:
            self._begin(file)
            self._skip(file, first * self.dtype.itemsize)
            while left:
                values = np.empty(min(left, step) // self.dtype.itemsize, self.dtype)
                left -= values.nbytes
                self._fill(file, values)
                yield values.astype(self.dtype.newbyteorder("="), copy=False)

    def stacked(self, nbytes: int) -> Iterator[np.ndarray]:
        """Yield [2, k] chunks of an array [2, n], or [n, 2] in Fortran order, of `nbytes` bytes."""
        if self.dtype.kind not in "biuf":
            raise self.error("must hold numbers", str(self.dtype))
        size, step = prod(self.shape) // 2, nbytes // (2 * self.dtype.itemsize)
        with self._open() as first, self._open() as second:
            for row, file in enumerate((first, second)):
                self._begin(file)
                self._skip(file, row * size * self.dtype.itemsize)
            for low in range(0, size, step):
                values = np.empty((2, min(step, size - low)), self.dtype)
                self._fill(first, values[0])
                self._fill(second, values[1])
                yield values.astype(self.dtype.newbyteorder("="), copy=False)

    def _skip(self, file: BinaryIO, nbytes: int) -> None:
        if self.member is None:
            file.seek(nbytes, 1)
            return
        while nbytes:
            nbytes -= len(self._read(file, min(nbytes, PIECE_BYTES)))

    def _read(self, file: BinaryIO, nbytes: int) -> bytes:
        parts: list[bytes] = []
        missing = nbytes
        while missing:
            part = file.read(missing)
            if not part:
                raise self._truncated()
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fill(self, file: BinaryIO, values: np.ndarray) -> None:
        """Fill `values` with bytes from the file."""
        place = values.view(np.uint8).data
        while place:
            count = cast(io.BufferedIOBase, file).readinto(place)
            if not count:
                raise self._truncated()
            place = place[count:]

    def raw(self, limit: int) -> bytes:
        """Return the bytes of the array, at most `limit`."""
        nbytes = prod(self.shape) * self.dtype.itemsize
        if nbytes > limit:
            raise self.error(f"takes {human(nbytes)}, and {human(limit)} fit")
        with self._open() as file:
            self._begin(file)
            return self._read(file, nbytes)

    def rows(self, limit: int) -> Iterator[np.ndarray]:
        """Yield the array in chunks along its first axis; in Fortran order it is loaded whole."""
        if self.ndim == 0:
            raise self.error("must have at least one dimension")
        if self.fortran:
            yield self.load(limit)
            return
        width = prod(self.shape[1:])
        if width == 0 or self.shape[0] == 0:
            yield np.empty(self.shape if prod(self.shape) == 0 else (0,), self.dtype)
            return
        if width * self.dtype.itemsize > limit:
            raise self.error(f"has rows too wide for --memory: {self.shape}")
        number = max(1, PIECE_BYTES // width // self.dtype.itemsize)
        for chunk in rechunk(self.flat(), number * width):
            yield chunk.reshape(-1, *self.shape[1:])

    def load(self, limit: int) -> np.ndarray:
        """Return the whole array, if it takes at most `limit` bytes."""
        nbytes = prod(self.shape) * self.dtype.itemsize
        if nbytes > limit:
            raise self.error(f"takes {human(nbytes)}, and {human(limit)} fit: raise --memory")
        parts = list(self.flat())
        values = np.concatenate(parts) if parts else np.empty(0, self.dtype.newbyteorder("="))
        return values.reshape(self.shape, order="F" if self.fortran else "C")

    def column(self, limit: int) -> Column:
        """Return the array as a column of the nodes."""
        return Column(self.path, self.member or "array", self.rows(limit))


class Archive:
    """The arrays of an .npz file, by name."""

    def __init__(self, path: Path) -> None:
        self.path = require(path)
        with open_zip(path) as archive:
            names = archive.namelist()
        self.names = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
        self.others = [name for name in names if not name.endswith(".npy")]
        if len(set(self.names)) != len(self.names):
            raise InputError("holds two arrays of the same name", file=path)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> ArraySource:
        if name not in self.names:
            raise InputError("no such array in the file", file=self.path, dataset=name)
        return ArraySource(self.path, name)

    def left_out(self, used: Container[str]) -> list[str]:
        """Return a note that lists the members not in `used`, if there are any."""
        unused = [name for name in self.names if name not in used] + self.others
        return [f"ignored: {', '.join(unused)}"] if unused else []

    def text(self, name: str) -> str:
        """Return a single short text, stored as bytes or characters."""
        array = self[name]
        if array.shape not in ((), (1,)) or array.dtype.kind not in "SU":
            raise array.error("must be one text", f"{array.dtype} {array.shape}")
        try:
            value = np.frombuffer(array.raw(1 << 10), array.dtype)[0]
            return value.decode("latin1") if isinstance(value, bytes) else str(value)
        except ValueError:
            raise array.error("must be one text") from None

    def integer(self, name: str) -> int:
        """Return a single integer."""
        array = self[name]
        if prod(array.shape) != 1 or array.dtype.kind not in "iu":
            raise array.error("must be one integer", f"{array.dtype} {array.shape}")
        return int(array.load(64).reshape(-1)[0])


def rechunk(chunks: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield the same rows in chunks of exactly `rows`, except for the last chunk."""
    held: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        while count + chunk.shape[0] >= rows:
            taken = rows - count
            yield np.concatenate([*held, chunk[:taken]]) if held else chunk[:taken]
            chunk, held, count = chunk[taken:], [], 0
        if chunk.shape[0]:
            held.append(chunk)
            count += chunk.shape[0]
    if held:
        yield np.concatenate(held)


def together(*columns: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield chunks of several columns, cut at the same rows.

    Raises:
        ValueError: the columns have different lengths.
    """
    iterators = [(chunk for chunk in column if chunk.shape[0]) for column in columns]
    held = [next(iterator, None) for iterator in iterators]
    while all(chunk is not None for chunk in held):
        arrays = [chunk for chunk in held if chunk is not None]
        rows = min(chunk.shape[0] for chunk in arrays)
        yield tuple(chunk[:rows] for chunk in arrays)
        held = [
            chunk[rows:] if chunk.shape[0] > rows else next(iterator, None)
            for chunk, iterator in zip(arrays, iterators, strict=True)
        ]
    if any(chunk is not None for chunk in held):
        raise ValueError("columns of different lengths")


class MemoryArray(ArraySource):
    """An array in memory that was read from a file, where it was called `member`."""

    def __init__(self, path: Path, member: str, values: np.ndarray) -> None:
        self.path = path
        self.member = member
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.fortran = False

    def flat(
        self, first: int = 0, count: int | None = None, nbytes: int = PIECE_BYTES
    ) -> Iterator[np.ndarray]:
        if self.dtype.kind not in "biuf":
            raise self.error("must hold numbers", str(self.dtype))
        values = np.ascontiguousarray(self.values).reshape(-1)
        values = values[first : None if count is None else first + count]
        yield from rechunk([values], max(1, nbytes // self.dtype.itemsize))

    def stacked(self, nbytes: int) -> Iterator[np.ndarray]:
        for chunk in rechunk([self.values.T], max(1, nbytes // (2 * self.dtype.itemsize))):
            yield chunk.T

    def load(self, limit: int) -> np.ndarray:
        return self.values

    def raw(self, limit: int) -> bytes:
        return self.values.tobytes()


class MemoryArchive(Archive):
    """Arrays in memory, by name.

    Args:
        others: names of the file's other contents, which can't be arrays.
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
