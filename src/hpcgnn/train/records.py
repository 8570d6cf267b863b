"""What lies in a run directory as text, metrics.jsonl above all, read with mistrust."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hpcgnn.errors import InputError

MAX_EPOCH = 1 << 40
_LONGEST_LINE = 1 << 20
_LARGEST_FILE = 1 << 30
_LARGEST_CONFIG = 1 << 20
_SHOWN = 5  # ranges of epochs in a message


@dataclass(frozen=True)
class Line:
    """A line of metrics.jsonl without its end; `record` is None where it is no epoch's record."""

    number: int
    text: bytes
    record: dict[str, Any] | None


def check_regular(path: Path) -> bool:
    """Whether `path` is there.

    Raises:
        InputError: it is something else than a file, such as a folder or a FIFO.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError("is a link that leads nowhere: move it away", file=path) from None
        return False
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", file=path) from None
    if not stat.S_ISREG(mode):
        raise InputError("is not a regular file: move it away", file=path)
    return True


def lines(path: Path) -> Iterator[Line]:
    """The lines of a journal, one at a time.

    Raises:
        FileNotFoundError: it isn't there.
        InputError: it can't be read, is no regular file, or far too large.
    """
    with _open(path, _LARGEST_FILE) as file:
        number = 0
        while text := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(text) > _LONGEST_LINE:
                raise InputError(f"line {number} is no record of an epoch: too long", file=path)
            yield Line(number, text.removesuffix(b"\n"), _record(text))


def config_of(run_dir: Path) -> dict[str, Any] | None:
    """The content of config.json; None where there is none.

    Raises:
        InputError: it is no JSON object, or no regular file.
    """
    path = run_dir / "config.json"
    try:
        with _open(path, _LARGEST_CONFIG) as file:
            config = json.loads(file.read(_LARGEST_CONFIG))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("holds no readable configuration", file=path) from error
    if not isinstance(config, dict):
        raise InputError("holds no readable configuration", file=path)
    return config


def gaps(epochs: Iterable[int], last: int) -> str:
    """Which of 1 .. last are not among `epochs` (rising), as `3, 7-9`; empty where all are."""
    found, expected = [], 1
    for epoch in [*epochs, last + 1]:
        if epoch > expected:
            found.append(str(expected) if epoch == expected + 1 else f"{expected}-{epoch - 1}")
        expected = epoch + 1
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def is_number(value: object) -> bool:
    """Finite, and no bool."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -1e300 < value < 1e300  # type: ignore[operator]


def _record(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
        epoch = record["epoch"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = isinstance(record, dict) and type(epoch) is int and 0 < epoch <= MAX_EPOCH
    return record if good else None


def _open(path: Path, largest: int) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError("is not a regular file", file=path)
        # Should it become a FIFO just now, opening must not wait for a writer.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", file=path) from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > largest:
        file.close()
        raise InputError(f"is not a regular file of at most {largest} bytes", file=path)
    return file
