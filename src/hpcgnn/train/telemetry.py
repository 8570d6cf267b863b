"""What an epoch cost and reached: metrics.jsonl and the lines a person reads."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import OutputError
from hpcgnn.storage.write import atomic
from hpcgnn.tasks.task import shown
from hpcgnn.train.journal import check_regular


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
            percent = shown(self.metric, 1).endswith("%")
            sign = " %" if percent else ""
            values = {name: shown(self.metric, record[name]) for name in _SETS}
            scores = "  ".join(f"{n} {text.removesuffix(' %')}" for n, text in values.items())
            line += f"  {self.metric}{sign} {scores}"
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


def human(size: float) -> str:
    """A number of bytes for people: `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


_SKIPPED = 1  # first epochs set things up once


class Profile:
    """Around the training loop; `step()` after every epoch. Nothing at all where `epochs` is 0.

    Writes `folder/rank-00000.json` and so on once `epochs` epochs after the first are over, or the
    loop ends.

    Raises:
        OutputError: the file can't be written.
        InputError: something else than a file has its name.
    """

    def __init__(self, folder: Path, rank: int, epochs: int) -> None:
        self.path, self._epochs, self._seen = folder / f"rank-{rank:05d}.json", epochs, 0
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> Profile:
        return self

    def step(self) -> None:
        """An epoch has ended."""
        self._seen += 1
        if self._epochs and self._seen == _SKIPPED:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        elif self._seen == _SKIPPED + self._epochs:
            self._write()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._write()
        elif self._profiler is not None:
            self._profiler.stop()

    def _write(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            check_regular(self.path)
            with atomic.claim(self.path) as temporary:
                profiler.export_chrome_trace(str(temporary))
                atomic.publish(temporary, self.path)
        except (OSError, RuntimeError) as error:
            raise OutputError(f"the profile can't be written: {error}", file=self.path) from error
