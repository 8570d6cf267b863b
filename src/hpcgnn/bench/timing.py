"""Timing several implementations of one operation side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpcgnn.errors import InputError


@dataclass(frozen=True)
class Sample:
    """Seconds of each repetition, none where memory was not enough, and device memory taken."""

    seconds: list[float]
    peak_bytes: int | None = None  # None on a CPU


Timer = Callable[[int, bool], Sample]  # repetitions, and whether to run once before


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
    operation: str, timers: dict[str, Timer], repeat: int, ours: str, *, in_turns: bool
) -> list[Row]:
    """Medians of `repeat` repetitions after one warm-up, and ratios to `ours`.

    Taking turns lets all of them see the same drift of the machine's speed; on a GPU, which doesn't
    drift, each keeps its memory from one repetition to the next instead.
    """
    samples = {name: time_it(0 if in_turns else repeat, True) for name, time_it in timers.items()}
    fit = {name: sample.seconds for name, sample in samples.items() if sample.seconds}
    if in_turns:
        fit = {name: [] for name in fit}
        for _ in range(repeat):
            for name, seconds in fit.items():
                seconds += timers[name](1, False).seconds
    medians = {name: statistics.median(seconds) for name, seconds in fit.items() if seconds}
    if ours not in medians:
        raise InputError("bench: memory was not enough for this size", value=operation)
    return [
        Row(
            operation,
            name,
            medians.get(name),
            medians[name] / medians[ours] if name in medians else None,
            peak_bytes=sample.peak_bytes,
        )
        for name, sample in samples.items()
    ]


def local(run: Callable[[], object]) -> Timer:
    """A timer of something in this process."""

    def time_it(repeat: int, warm_up: bool) -> Sample:
        try:
            return _timed(run, repeat, warm_up)
        except torch.OutOfMemoryError:
            return Sample([])
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            return Sample([])

    return time_it


def _timed(run: Callable[[], object], repeat: int, warm_up: bool) -> Sample:
    """The warm-up's time comes first where it is all that is asked for."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = [_seconds(run) for _ in range(warm_up + repeat)]
    if warm_up and repeat:
        del seconds[0]
    peak = None
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() - before
        torch.cuda.empty_cache()  # others come next
    return Sample(seconds, peak)


def _seconds(run: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
