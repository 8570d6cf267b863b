"""Opening source files: every way in which that fails becomes one line."""

from __future__ import annotations

import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from hpcgnn.errors import InputError

DAMAGED = (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
_ZIP_SURPRISES = (NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of operating system, gzip and zip into InputError naming `path`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except DAMAGED as error:
        raise InputError(f"is truncated or damaged: {error}", file=path) from None
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror or error}", file=path) from None


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where it starts as gzip does.

    Raises:
        InputError: missing, a folder, not permitted, damaged.
    """
    with reading(path), path.open("rb") as raw:
        if raw.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=raw) as file:
                yield cast(BinaryIO, file)
        else:
            yield raw


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive; whatever a damaged or exotic one raises becomes InputError."""
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except _ZIP_SURPRISES as error:
            raise InputError(f"can't be unpacked: {error}", file=path) from None


def require(path: Path) -> Path:
    """`path`, if a file is there."""
    with reading(path):
        path.stat()
    if path.is_dir():
        raise InputError("is a folder; a file is needed", file=path)
    return path
