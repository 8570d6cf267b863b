"""What an epoch cost and reached: metrics.jsonl and the lines a person reads."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError, OutputError, warn
from hpcgnn.storage import atomic
from hpcgnn.train.records import MAX_EPOCH, config_of, gaps, lines


class Stopwatch:
    """Seconds per named phase of one epoch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class Counters:
    """Where a rank's counters stood when the epoch began."""

    wait_seconds: float
    bytes_sent: int

    @staticmethod
    def of(ring: Ring) -> Counters:
        return Counters(ring.wait_seconds, ring.bytes_sent)


def peak_memory(device: torch.device) -> int:
    """Most bytes this rank has held: of device memory on a GPU, else of resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory() -> int:
    """Bytes this process holds now; 0 where the system doesn't tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


def over_ranks(comm: Communicator, ring: Ring, before: Counters, device: torch.device) -> dict:
    """`{counter: {min, mean, max}}` over the ranks; collective."""
    local = np.array(
        [
            ring.wait_seconds - before.wait_seconds,
            ring.bytes_sent - before.bytes_sent,
            peak_memory(device),
        ],
        np.float64,
    )
    least = comm.allreduce(local, "min", where="telemetry")
    most = comm.allreduce(local, "max", where="telemetry")
    mean = comm.allreduce(local, "sum", where="telemetry") / comm.size
    names = ("comm_wait_seconds", "bytes_sent", "peak_memory_bytes")
    return {
        name: {"min": float(least[i]), "mean": float(mean[i]), "max": float(most[i])}
        for i, name in enumerate(names)
    }


class Journal:
    """metrics.jsonl of a run directory; only rank 0 writes.

    Lines that are no records are dropped, of several records of an epoch the last is kept, and
    what is missing before the start is told. A record that can't be written is kept in memory and
    written before the next.

    Args:
        epoch: the run goes on after this epoch: later lines of an earlier attempt are dropped.
        until: the run's last epoch: up to here they will be written again.

    Raises:
        InputError: it can't be read, is somebody else's, or tells of epochs that would be lost.
        OutputError: it can't be written.
    """

    def __init__(self, path: Path, epoch: int, until: int = MAX_EPOCH) -> None:
        self.path = path
        self._waiting: dict[int, str] = {}
        found = _Found.read(path)
        if epoch == 0 and found.kept:
            _check_lost(path, found)
        last = max(found.kept, default=0)
        if last > max(epoch, until):
            raise InputError(
                f"tells of {last} epochs, of which those after {epoch} would be lost: the newest "
                f"good checkpoint is of epoch {epoch}; ask for --epochs {last} at least",
                file=path,
            )
        kept = [found.kept[number] for number in sorted(found.kept) if number <= epoch]
        if found.bad:
            _warn(f"{path}: {found.bad} lines are torn or no records of epochs: dropped")
        if found.kept and (missing := gaps(sorted(found.kept), epoch)):
            _warn(f"{path}: no record of epoch {missing}")
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
        """Add a record; a failure is told, and made up for later."""
        self._waiting[record["epoch"]] = json.dumps(record) + "\n"
        try:
            self._append("".join(self._waiting.values()).encode())
        except OSError as error:
            _warn(f"{self.path}: epoch {record['epoch']} not recorded: {error.strerror}")
        else:
            self._waiting.clear()

    def sync(self) -> None:
        """Bring what was written to the disk; from any thread."""
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Write what couldn't be written so far, or tell what is missing for good."""
        if not self._waiting:
            return
        try:
            self._append("".join(self._waiting.values()).encode())
        except OSError as error:
            last = max(self._waiting)
            others = [epoch for epoch in range(1, last + 1) if epoch not in self._waiting]
            _warn(f"{self.path}: no record of epoch {gaps(others, last)}: {error.strerror}")

    def _append(self, data: bytes) -> None:
        """All of `data`, or nothing and OSError."""
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
    """An existing journal: lines by epoch, how many it has, how many are no records."""

    kept: dict[int, bytes]
    lines: int = 0
    bad: int = 0
    saved: bool = False  # a checkpoint was on disk by then
    tidy: bool = True  # epochs rise, and every line ends

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
                # Records of earlier releases don't tell, but a score made a best checkpoint.
                saved = line.record.get("checkpoint", line.record.get("valid"))
                found.saved |= saved not in (0, None)
        except FileNotFoundError:
            return found
        if found.bad > 1 and not found.kept:
            raise InputError("holds no record of an epoch: not of a run; move it away", file=path)
        found.tidy &= not found.bad and _ends_with_a_line(path)
        return found


def _ends_with_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"\n", b"")


def _check_lost(path: Path, found: _Found) -> None:
    """A run may start again at epoch 1 only where it ended before its first checkpoint."""
    last, epochs = max(found.kept), None
    with suppress(InputError):
        epochs = (config_of(path.parent) or {}).get("epochs")
    if found.saved or type(epochs) is not int or last >= epochs:
        raise InputError(
            f"tells of {last} epochs, but no checkpoint is left to go on from: bring one back, "
            "choose another --run-dir, or move this file away to start again at epoch 1",
            file=path,
        )
    _warn(f"{path}: ended after epoch {last}, before the first checkpoint: starts again at epoch 1")


def _warn(text: str) -> None:
    with suppress(OSError, ValueError):  # a log that is full or closed doesn't end training
        warn(f"hpcgnn: warning: {text}")


class Reporter:
    """One line per epoch: rewritten in place on a terminal, plain in a batch log."""

    def __init__(self, epochs: int, metric: str, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.epochs, self.metric = epochs, metric

    def epoch(self, record: dict[str, Any]) -> None:
        width = len(str(self.epochs))
        line = f"epoch {record['epoch']:{width}d}/{self.epochs}  loss {record['loss']:.4f}"
        if any(record[name] is not None for name in _SETS):
            scores = "  ".join(f"{name} {_percent(record[name])}" for name in _SETS)
            line += f"  {self.metric} % {scores}"
        line += (
            f"  {record['epoch_seconds']:.2f} s  wait {record['comm_wait_seconds']['max']:.2f} s"
        )
        line += f"  sent {human(record['bytes_sent']['mean'])}/rank"
        line += f"  peak {human(record['peak_memory_bytes']['max'])}"
        end = "\r" if self.live and record["epoch"] < self.epochs else "\n"
        clear = "\x1b[2K" if self.live else ""
        print(clear + line, end=end, file=self.stream, flush=True)

    def say(self, text: str) -> None:
        print(("\n" if self.live else "") + text, file=self.stream, flush=True)


_SETS = ("train", "valid", "test")


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.2f}"


def human(size: float) -> str:
    """A number of bytes for people: `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
