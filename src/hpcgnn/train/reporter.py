"""What a person sees of training: a line per epoch, on a terminal rewritten in place."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from hpcgnn.tasks.metric_names import shown
from hpcgnn.train.telemetry import human, now

SHOWN = ("lines", "all", "nothing", "json")
_SETS = ("train", "valid", "test")


class Reporter:
    """Speaks on rank 0.

    Args:
        epochs: how many there will be at most.
        metric: what is scored, see `tasks.shown`.
        show: `lines` of at most 80 columns, `all` that was measured, `nothing` but the end, or
            `json`: the records of metrics.jsonl, a line each.
        stream: where to (stdout).
    """

    def __init__(
        self, epochs: int, metric: str, show: str = "lines", stream: TextIO | None = None
    ) -> None:
        self.stream = stream or sys.stdout
        self.epochs, self.metric, self.show = epochs, metric, show
        self.live = self.stream.isatty() and show in ("lines", "all")
        self._open = False  # a line that the next one replaces

    def epoch(self, record: dict[str, Any]) -> None:
        """Say what an epoch reached and cost."""
        if self.show == "json":
            print(json.dumps(record), file=self.stream, flush=True)
        if self.show in ("json", "nothing"):
            return
        line = self._line(record)
        self._open = self.live and record["epoch"] < self.epochs
        clear = "\x1b[2K" if self.live else ""
        print(clear + line, end="\r" if self._open else "\n", file=self.stream, flush=True)

    def say(self, text: str) -> None:
        """A line between or after the epochs."""
        if self.show == "json":
            text = json.dumps({"time": now(), "note": text})
        print(("\n" if self._open else "") + text, file=self.stream, flush=True)
        self._open = False

    def _line(self, record: dict[str, Any]) -> str:
        width = len(str(self.epochs))
        parts = [f"epoch {record['epoch']:{width}d}/{self.epochs}", f"loss {record['loss']:.4f}"]
        scores = [record[name] for name in _SETS]
        if any(score is not None for score in scores):
            texts = [shown(self.metric, score) for score in scores]
            parts += [f"{n} {t.removesuffix(' %')}" for n, t in zip(_SETS, texts, strict=True)]
            parts[-1] += " %" if shown(self.metric, 1.0).endswith("%") else ""
        parts.append(f"{record['epoch_seconds']:.2f} s")
        if self.show == "all":
            parts += [
                f"wait {record['comm_wait_seconds']['max']:.2f} s",
                f"sent {human(record['bytes_sent']['mean'])}/rank",
                f"peak {human(record['peak_memory_bytes']['max'])}",
            ]
        return "  ".join(parts)
