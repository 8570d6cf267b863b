"""Opening of source files, which turns every failure into a one-line error."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from hpcgnn.errors import InputError, OutputError, human
from hpcgnn.storage.importers.source import PIECE_BYTES
from hpcgnn.system import is_named_pipe

if TYPE_CHECKING:
    import pyarrow as pa

DAMAGED = (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
_ZIP_SURPRISES = (NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)
_FREE_BYTES = 1 << 30  # any file may unpack to this size
_MAX_INFLATION = 500  # text and numbers are packed to a tenth, seldom to a hundredth


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the operating system, gzip and zip into InputError naming `path`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except DAMAGED as error:
        raise InputError(f"is truncated or damaged: {error}", file=path) from None
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror or error}", file=path) from None


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a regular file opened for reading its bytes as stored.

    Raises:
        InputError: `path` is missing, not permitted, a folder, or a pipe or device, which are not
            waited for.
    """
    with reading(path):
        # A blocking open of a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _require_regular(descriptor, path)
        except InputError:
            os.close(descriptor)
            raise
        with os.fdopen(descriptor, "rb") as file:
            yield file


def _require_regular(descriptor: int, path: Path) -> None:
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(kind):
        raise InputError("is a folder; a file is needed", file=path)
    if not stat.S_ISREG(kind):
        raise InputError("is a pipe, device or socket: store its content in a file", file=path)


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Yield a file opened for reading, decompressed if it starts like gzip or Zstandard.

    Raises:
        InputError: as in `open_file`, or the file is damaged or unpacks to an implausible size.
    """
    with open_file(path) as raw:
        start = cast(io.BufferedReader, raw).peek(4)[:4]
        packed = os.fstat(raw.fileno()).st_size
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=raw) as file:
                yield cast(BinaryIO, _Unpacked(cast(BinaryIO, file), path, packed))
        elif start == b"\x28\xb5\x2f\xfd":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as stream:
                yield cast(BinaryIO, _Unpacked(_lines(stream), path, packed))
        else:
            yield raw


def _lines(stream: pa.NativeFile) -> IO[bytes]:
    """Return the stream with a `readline` method, read in large pieces."""
    return io.BufferedReader(stream, 1 << 20)


class _Unpacked:
    """A compressed file that is read only while its contents are in proportion to its size."""

    def __init__(self, file: IO[bytes], path: Path, packed: int) -> None:
        self._file = file
        self._path = path
        self._packed = packed
        self._unpacked = 0

    def read(self, size: int) -> bytes:
        return self._counted(self._file.read(size))

    def readline(self, size: int) -> bytes:
        return self._counted(self._file.readline(size))

    def _counted(self, data: bytes) -> bytes:
        self._unpacked += len(data)
        check_inflation(self._path, self._packed, self._unpacked)
        return data


def check_inflation(path: Path, packed: int, unpacked: int, dataset: str | None = None) -> None:
    """Refuse contents above a GiB that are more than 500 times the stored size."""
    if unpacked > max(_FREE_BYTES, _MAX_INFLATION * packed):
        raise InputError(
            f"unpacks to more than {_MAX_INFLATION} times its size: if this is intended, unpack it "
            "yourself",
            file=path,
            dataset=dataset,
            value=f"{human(unpacked)} from {human(packed)}",
        )


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yield a zip archive; any error that a damaged or unusual one raises becomes InputError."""
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    _check_method(member, path)
                yield archive
        except _ZIP_SURPRISES as error:
            raise InputError(f"can't be unpacked: {error}", file=path) from None


def _check_method(member: zipfile.ZipInfo, path: Path) -> None:
    """Refuse methods that zipfile unpacks without a bound: 900 bytes of bzip2 can give a GiB."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            "is compressed with a method that NumPy doesn't use: unpack it, and compress it with "
            "deflate",
            file=path,
            dataset=member.filename,
            value=f"method {member.compress_type}",
        )


def require(path: Path) -> Path:
    """Return `path` if it is a regular file that may be read."""
    with open_file(path):
        return path


def store_pipe(path: Path, folder: Path) -> None:
    """Replace a pipe of the shell, as in `<(command)`, by a file with its bytes at the same path.

    This is needed since files are read more than once. The file has no name in `folder` and
    disappears with the process. Any other `path` is left alone.

    Raises:
        OutputError: `folder` has no space for the file.
    """
    try:
        status = path.stat()
    except OSError:
        return  # opening it will report the error
    if not stat.S_ISFIFO(status.st_mode) or is_named_pipe(status):
        return
    numbers = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - no files but numbers
    for number in numbers:
        with suppress(OSError):  # the number of the listing itself
            if os.path.samestat(os.fstat(number), status):
                break
    else:
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as store, open(number, "rb", closefd=False) as pipe:
            shutil.copyfileobj(pipe, store, PIECE_BYTES)
            store.flush()
            os.dup2(store.fileno(), number)
    except OSError as error:
        text = f"can't be stored in {folder}: {error.strerror}"
        raise OutputError(text, file=path) from None
