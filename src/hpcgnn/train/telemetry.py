"""What an epoch cost and reached: metrics.jsonl and the lines a person reads."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError, OutputError, say
from hpcgnn.storage import atomic


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

    Args:
        epoch: the run goes on after this epoch: later lines of an earlier attempt are dropped.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        self.path = path
        kept = [line for line in _lines(path) if json.loads(line)["epoch"] <= epoch]
        try:
            with atomic.claim(path) as temporary:
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(line + "\n" for line in kept)
                    file.flush()
                    os.fsync(file.fileno())
                atomic.publish(temporary, path)
        except OSError as error:
            raise OutputError(f"can't be written: {error.strerror}", file=path) from error

    def write(self, record: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            say(
                f"hpcgnn: warning: {self.path}: epoch {record['epoch']} not recorded: "
                f"{error.strerror}",
                file=sys.stderr,
            )


def _lines(path: Path) -> list[str]:
    """Whole records of an existing journal; a torn last line is dropped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("can't be read; choose another --run-dir", file=path) from error
    kept = []
    for line in lines:
        try:
            if isinstance(json.loads(line)["epoch"], int):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


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
