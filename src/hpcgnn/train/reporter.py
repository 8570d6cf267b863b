"""What a person sees of training: a line per epoch."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from hpcgnn.system import clock, now
from hpcgnn.tasks.metric_names import shown
from hpcgnn.train.telemetry import human

SHOWN = ("lines", "all", "nothing", "json")
_SETS = ("train", "valid", "test")


class Reporter:
    """Speaks on rank 0.

    Args:
        epochs: how many there will be at most.
        metric: what is scored, see `tasks.shown`.
        show: `lines` of at most 80 columns, `all` that was measured, `nothing` but the end, or
            `json`: the records of metrics.jsonl, a line each.
        stream: where to; None: what is standard output then. The time of day stands before the
            line of an epoch where that is no terminal.
    """

    def __init__(
        self, epochs: int, metric: str, show: str = "lines", stream: TextIO | None = None
    ) -> None:
        self.epochs, self.metric, self.show, self._stream = epochs, metric, show, stream

    def epoch(self, record: dict[str, Any]) -> None:
        """Say what an epoch reached and cost."""
        if self.show == "json":
            self._print(json.dumps(record))
        elif self.show != "nothing":
            stream = self._stream or sys.stdout
            self._print(
                self._line(record) if stream.isatty() else f"{clock()} {self._line(record)}"
            )

    def say(self, text: str) -> None:
        """A line between or after the epochs."""
        self._print(json.dumps({"time": now(), "note": text}) if self.show == "json" else text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)

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
