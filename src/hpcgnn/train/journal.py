"""Text files of a run directory, above all metrics.jsonl, read with every line checked."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hpcgnn.errors import InputError, OutputError, counted, warning
from hpcgnn.storage.write import atomic

MAX_EPOCH = 1 << 40
_LONGEST_LINE = 1 << 20
_LARGEST_FILE = 1 << 30
_LARGEST_CONFIG = 1 << 20
_SHOWN = 5  # ranges of epochs listed in a message


@dataclass(frozen=True)
class Line:
    """A line of metrics.jsonl without its newline; `record` is None if it isn't a record."""

    number: int
    text: bytes
    record: dict[str, Any] | None


def check_regular(path: Path) -> bool:
    """Return whether `path` exists.

    Raises:
        InputError: it is not a regular file, but a folder or a FIFO, for example.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError("is a broken link: move it away", file=path) from None
        return False
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", file=path) from None
    if not stat.S_ISREG(mode):
        raise InputError("is not a regular file: move it away", file=path)
    return True


def lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a journal, one at a time.

    Raises:
        FileNotFoundError: it doesn't exist.
        InputError: it can't be read, is not a regular file, or is far too large.
    """
    with _open(path, _LARGEST_FILE) as file:
        number = 0
        while text := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(text) > _LONGEST_LINE:
                raise InputError(f"line {number} is not a record of an epoch: too long", file=path)
            yield Line(number, text.removesuffix(b"\n"), _record(text))


def json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the objects of a file with one per line; None for lines that aren't objects.

    Raises:
        FileNotFoundError: it doesn't exist.
        InputError: it can't be read, is not a regular file, or is far too large.
    """
    with _open(path, _LARGEST_FILE) as file:
        while text := file.readline(_LONGEST_LINE + 1):
            value: Any = None
            with suppress(ValueError, RecursionError):
                value = json.loads(text)
            yield value if isinstance(value, dict) else None


def config_of(run_dir: Path) -> dict[str, Any] | None:
    """Return the content of config.json; None if it doesn't exist.

    Raises:
        InputError: it is not a JSON object, or not a regular file.
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
    """Return which of 1 .. last are not in `epochs` (ascending), as `3, 7-9`; empty if none."""
    found, expected = [], 1
    for epoch in [*epochs, last + 1]:
        if epoch > expected:
            found.append(str(expected) if epoch == expected + 1 else f"{expected}-{epoch - 1}")
        expected = epoch + 1
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, and not a bool."""
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
        # If it is replaced by a FIFO just now, opening must not wait for a writer.
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


@dataclass(frozen=True)
class Best:
    """The best epoch until a checkpoint, and the entry of its record that made it the best.

    `entry` is None if records don't hold the monitored value by itself.
    """

    epoch: int
    entry: str | None
    value: float | None


class Journal:
    """metrics.jsonl of a run directory; only rank 0 writes.

    On opening, lines that aren't records are dropped, the last of several records of an epoch is
    kept, and a warning names epochs without a record. A record that can't be written is kept in
    memory and written before the next one.

    Args:
        epoch: the run continues after this epoch; later lines of an earlier attempt are dropped.
        until: the run's last epoch; lines up to it will be written again.
        best: as the checkpoint of `epoch` says; records that say otherwise are another run's.
        beside: a secondary journal of the run: later and damaged lines are dropped without checks
            and warnings.

    Raises:
        InputError: it can't be read, is not a run's, or has epochs that would be lost.
        OutputError: it can't be written.
    """

    def __init__(
        self,
        path: Path,
        epoch: int,
        until: int = MAX_EPOCH,
        *,
        best: Best | None = None,
        beside: bool = False,
    ) -> None:
        self.path = path
        self._waiting: dict[int, str] = {}
        found = _Found.read(path)
        if not beside:
            if best is not None:
                _check_same_run(path, found, epoch, best)
            _check_kept(path, found, epoch, until)
        kept = [found.kept[number] for number in sorted(found.kept) if number <= epoch]
        if found.tidy and len(kept) == found.lines and path.exists():
            return
        try:
            with atomic.claim(path) as temporary:
                with temporary.open("wb") as file:
                    file.writelines(line + b"\n" for line in kept)
                    file.flush()
                    os.fsync(file.fileno())
                atomic.publish(temporary, path)
        except OSError as error:
            raise OutputError(f"can't be written: {error.strerror}", file=path) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; if that fails, warn, and write it with a later one."""
        self._waiting[record["epoch"]] = json.dumps(record) + "\n"
        try:
            self._append("".join(self._waiting.values()).encode())
        except OSError as error:
            warning(f"{self.path}: epoch {record['epoch']} not recorded: {error.strerror}")
        else:
            self._waiting.clear()

    def sync(self) -> None:
        """Flush the file to disk; can be called from any thread."""
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Write records that couldn't be written before, or warn which are missing for good."""
        if not self._waiting:
            return
        try:
            self._append("".join(self._waiting.values()).encode())
        except OSError as error:
            last = max(self._waiting)
            others = [epoch for epoch in range(1, last + 1) if epoch not in self._waiting]
            warning(f"{self.path}: no record of epoch {gaps(others, last)}: {error.strerror}")

    def _append(self, data: bytes) -> None:
        """Write all of `data`, or write nothing and raise OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            written = 0
            try:
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], status.st_size + written)
            except BaseException:
                os.ftruncate(descriptor, status.st_size)
                raise
        finally:
            os.close(descriptor)


@dataclass
class _Found:
    """The content of an existing journal: lines by epoch, their number, and that of bad lines."""

    kept: dict[int, bytes]
    lines: int = 0
    bad: int = 0
    saved: bool = False  # some line says that a checkpoint was on disk
    tidy: bool = True  # epochs ascend, and every line is complete

    @staticmethod
    def read(path: Path) -> _Found:
        found, last = _Found({}), 0
        try:
            for line in lines(path):
                found.lines += 1
                if line.record is None:
                    found.bad += 1
                    continue
                epoch = line.record["epoch"]
                found.tidy &= epoch > last
                last = epoch
                found.kept[epoch] = line.text
                # Records of earlier releases don't say; there, a score implies a best checkpoint.
                saved = line.record.get("checkpoint", line.record.get("valid"))
                found.saved |= saved not in (0, None)
        except FileNotFoundError:
            return found
        if found.bad > 1 and not found.kept:
            raise InputError(
                "holds no record of an epoch, so it does not belong to a run: move it away",
                file=path,
            )
        found.tidy &= not found.bad and _ends_with_a_line(path)
        return found


def _ends_with_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"\n", b"")


def _check_kept(path: Path, found: _Found, epoch: int, until: int) -> None:
    """Check that no record would be lost without an error or a warning."""
    if epoch == 0 and found.kept:
        _check_lost(path, found)
    last = max(found.kept, default=0)
    if last > max(epoch, until):
        raise InputError(
            f"records {counted(last, 'epoch')}, of which those after {epoch} would be lost: "
            f"the newest good checkpoint is of epoch {epoch}; use --epochs {last} or more",
            file=path,
        )
    if epoch and found.bad and not found.kept:
        raise InputError(
            "holds no record of an epoch, so it does not belong to a run: move it away", file=path
        )
    if found.bad:
        dropped = counted(found.bad, "line")
        warning(f"{path}: {dropped} cut off, or no record of an epoch: dropped")
    if missing := gaps(sorted(found.kept), epoch):
        warning(f"{path}: no record of epoch {missing}")


def _check_same_run(path: Path, found: _Found, epoch: int, best: Best) -> None:
    """Check that the records are of the checkpoint's run, before any is continued or dropped."""
    for number, entry, expected in (
        (epoch, "best_epoch", best.epoch),
        (best.epoch, best.entry, best.value),
    ):
        if number not in found.kept or entry is None:
            continue
        value = json.loads(found.kept[number]).get(entry)
        if value is not None and value != expected:  # records of earlier releases lack some
            raise InputError(
                f"is of another run: epoch {number} has {entry} {value!r}, the checkpoint "
                f"{expected!r}: restore the file of this run, or move it away",
                file=path,
            )


def _check_lost(path: Path, found: _Found) -> None:
    """Check that the run ended before its first checkpoint, so that it may start at epoch 1."""
    last, epochs = max(found.kept), None
    with suppress(InputError):
        epochs = (config_of(path.parent) or {}).get("epochs")
    if found.saved or type(epochs) is not int or last >= epochs:
        raise InputError(
            f"records {counted(last, 'epoch')}, but no checkpoint is left to continue from: "
            "restore one, choose another --run-dir, or move this file away to start again",
            file=path,
        )
    warning(
        f"{path}: the run ended after epoch {last}, before the first checkpoint: starting again at "
        "epoch 1"
    )
