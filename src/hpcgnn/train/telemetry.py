"""The cost and results of an epoch: metrics.jsonl, the printed lines and the profile."""

from __future__ import annotations

import json
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
from hpcgnn.errors import OutputError, human, printable
from hpcgnn.storage.write import atomic
from hpcgnn.system import clock, now
from hpcgnn.tasks.settings import shown
from hpcgnn.train.journal import check_regular

_SPREAD = ("comm_wait_seconds", "pack_seconds", "bytes_sent", "peak_memory_bytes")
_MOST_PAIRS = 64  # most ranks for which bytes per pair of ranks are recorded
_SKIPPED = 1  # first epochs, left out for their one-off set-up
SHOWN = ("lines", "all", "nothing", "json")
_SETS = ("train", "valid", "test")


class Stopwatch:
    """A timer of the named phases of an epoch, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def named(self, *phases: str) -> dict[str, float]:
        """Return `{phase}_seconds` of these phases, 0 for those that were not timed."""
        return {f"{phase}_seconds": self.seconds.get(phase, 0.0) for phase in phases}


@dataclass
class Counters:
    """The counters of a rank at the start of an epoch."""

    wait_seconds: float
    pack_seconds: float
    sent_to_P: np.ndarray

    @staticmethod
    def of(ring: Ring) -> Counters:
        return Counters(ring.wait_seconds, ring.pack_seconds, ring.sent_to_P.copy())


def peak_memory(device: torch.device) -> int:
    """Return this rank's peak memory in bytes: device memory on a GPU, else resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Costs:
    """The costs of an epoch on each rank.

    Attributes:
        spread: `{counter: {min, mean, max}}` over the ranks.
        ranks: `{counter: [P]}`, and `sent_to` `[P, P]` for few ranks.
    """

    spread: dict[str, dict[str, float]]
    ranks: dict[str, Any]


def over_ranks(
    comm: Communicator,
    ring: Ring,
    before: Counters,
    seconds: dict[str, float],
    device: torch.device,
) -> Costs:
    """Return the costs of an epoch on all ranks, the same on each; collective.

    Args:
        seconds: of this rank, by the names to report them under.
    """
    sent_P = ring.sent_to_P - before.sent_to_P
    local = {
        **seconds,
        "comm_wait_seconds": ring.wait_seconds - before.wait_seconds,
        "pack_seconds": ring.pack_seconds - before.pack_seconds,
        "bytes_sent": int(sent_P.sum()),
        "peak_memory_bytes": peak_memory(device),
    }
    pairs = sent_P if 1 < comm.size <= _MOST_PAIRS else sent_P[:0]
    row = np.concatenate([np.array(list(local.values()), np.float64), pairs])
    table_PN = np.stack(comm.allgather(row, where="telemetry"))
    columns = {name: table_PN[:, i] for i, name in enumerate(local)}
    spread = {
        name: {"min": float(c.min()), "mean": float(c.mean()), "max": float(c.max())}
        for name, c in columns.items()
        if name in _SPREAD
    }
    ranks: dict[str, Any] = {
        name: [round(value, 6) for value in column.tolist()] for name, column in columns.items()
    }
    if len(pairs):
        ranks["sent_to"] = table_PN[:, len(local) :].astype(np.int64).tolist()
    return Costs(spread, ranks)


class Profile:
    """A context that profiles the training loop; call `step()` after every epoch.

    Writes `folder/rank-00000.json` and so on after `epochs` epochs, the first one left out, or at
    the end of the loop. Does nothing if `epochs` is 0.

    Raises:
        OutputError: the file can't be written.
        InputError: the file's name is taken by something that is not a file.
    """

    def __init__(self, folder: Path, rank: int, epochs: int) -> None:
        self.path, self._epochs, self._seen = folder / f"rank-{rank:05d}.json", epochs, 0
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> Profile:
        return self

    def step(self) -> None:
        """Note the end of an epoch."""
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


class Reporter:
    """Printer of the lines about training, for rank 0.

    Args:
        epochs: number of epochs at most.
        metric: name of the reported metric, see `tasks.shown`.
        show: `lines` of at most 80 columns; `all` measurements; `nothing` except the end; or
            `json`: the records of metrics.jsonl, one per line.
        stream: output stream; None: the standard output at the time of printing. If it is not a
            terminal, each epoch's line begins with the time of day.
    """

    def __init__(
        self, epochs: int, metric: str, show: str = "lines", stream: TextIO | None = None
    ) -> None:
        self.epochs, self.metric, self.show, self._stream = epochs, metric, show, stream

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the results and costs of an epoch."""
        if self.show == "json":
            self._print(json.dumps(record))
        elif self.show != "nothing":
            stream = self._stream or sys.stdout
            self._print(
                self._line(record) if stream.isatty() else f"{clock()} {self._line(record)}"
            )

    def say(self, text: str) -> None:
        """Print a line between or after the epochs."""
        self._print(json.dumps({"time": now(), "note": text}) if self.show == "json" else text)

    def _print(self, text: str) -> None:
        print(printable(text), file=self._stream or sys.stdout, flush=True)

    def _line(self, record: dict[str, Any]) -> str:
        width = len(str(self.epochs))
        parts = [f"epoch {record['epoch']:{width}d}/{self.epochs}", f"loss {record['loss']:.4f}"]
        scores = [record[name] for name in _SETS]
        if any(score is not None for score in scores):
            texts = [shown(self.metric, score) for score in scores]
            text = " ".join(
                f"{n} {t.removesuffix(' %')}" for n, t in zip(_SETS, texts, strict=True)
            )
            parts.append(text + (" %" if shown(self.metric, 1.0).endswith("%") else ""))
        parts.append(f"{record['epoch_seconds']:.2f} s")
        if self.show == "all":
            parts += [
                f"wait {record['comm_wait_seconds']['max']:.2f} s",
                f"sent {human(record['bytes_sent']['mean'])}/rank",
                f"peak {human(record['peak_memory_bytes']['max'])}",
            ]
        return "  ".join(parts)
