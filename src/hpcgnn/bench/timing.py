"""Timing several implementations of one operation side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One operation of one implementation: median seconds, and times as long as ours."""

    operation: str
    implementation: str
    seconds: float
    ratio: float


def compare(
    operation: str, candidates: dict[str, Callable[[], object]], repeat: int, ours: str
) -> list[Row]:
    """Run the candidates in turn, `repeat` times after one warm-up; medians and ratios to `ours`.

    Taking turns lets all of them see the same drift of the machine's speed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeat + 1):
        for name, run in candidates.items():
            _synchronise()
            start = time.perf_counter()
            run()
            _synchronise()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        Row(operation, name, median, median / medians[ours]) for name, median in medians.items()
    ]


def _synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
