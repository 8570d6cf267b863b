"""Timing several implementations of one operation side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_LACKING = -1


@dataclass(frozen=True)
class Row:
    """One operation of one implementation.

    Attributes:
        seconds: median; None where memory was not enough.
        ratio: times as long as ours.
        peak_bytes: most device memory beyond what lay there before; None on a CPU.
        num_bytes, share: bytes counted, and their rate over that of a copy, for bare kernels.
    """

    operation: str
    implementation: str
    seconds: float | None
    ratio: float | None
    peak_bytes: int | None = None
    num_bytes: int | None = None
    share: float | None = None


def compare(
    operation: str, candidates: dict[str, Callable[[], object]], repeat: int, ours: str
) -> list[Row]:
    """Run the candidates in turn, `repeat` times after one warm-up; medians and ratios to `ours`.

    Taking turns lets all of them see the same drift of the machine's speed.
    """
    peaks = {name: _warm_up(run) for name, run in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name, peak in peaks.items() if peak != _LACKING}
    for _ in range(repeat):
        for name, times in seconds.items():
            synchronise()
            start = time.perf_counter()
            candidates[name]()
            synchronise()
            times.append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = medians.get(ours)
    return [
        Row(
            operation,
            name,
            medians.get(name),
            medians[name] / best if name in medians and best else None,
            peak_bytes=peak if peak != _LACKING else None,
        )
        for name, peak in peaks.items()
    ]


def _warm_up(run: Callable[[], object]) -> int | None:
    """Run once: the device memory it took, None on a CPU, `_LACKING` where that was not enough."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    try:
        run()
    except torch.OutOfMemoryError:
        return _LACKING
    synchronise()
    return torch.cuda.max_memory_allocated() - before if on_gpu else None


def synchronise() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
