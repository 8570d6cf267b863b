"""Opening source files: every way in which that fails becomes one line."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from hpcgnn.errors import InputError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of operating system, gzip and zip into InputError naming `path`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
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


def require(path: Path) -> Path:
    """`path`, if a file is there."""
    with reading(path):
        path.stat()
    if path.is_dir():
        raise InputError("is a folder; a file is needed", file=path)
    return path
