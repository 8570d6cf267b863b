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


TURNS = 3  # of each implementation on a CPU
WARM_UP = 5  # repetitions: on a virtual machine the first touches of a page take ten times as long
Timer = Callable[[int], Sample]  # so many repetitions after up to a second's that aren't counted


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
    """Medians, and ratios to `ours`: `repeat` repetitions in succession, thrice if in turns.

    Taking turns lets all of them see the same drift of the machine's speed; a GPU doesn't drift.
    """
    turns = TURNS if in_turns else 1
    samples: dict[str, list[Sample]] = {name: [] for name in timers}
    for _ in range(turns):
        for name, time_it in timers.items():
            if all(sample.seconds for sample in samples[name]):
                samples[name].append(time_it(repeat))
    medians = {
        name: statistics.median(second for sample in taken for second in sample.seconds)
        for name, taken in samples.items()
        if taken[-1].seconds
    }
    if ours not in medians:
        raise InputError("bench: memory was not enough for this size", value=operation)
    return [
        Row(
            operation,
            name,
            medians.get(name),
            medians[name] / medians[ours] if name in medians else None,
            peak_bytes=taken[-1].peak_bytes,
        )
        for name, taken in samples.items()
    ]


def local(run: Callable[[], object]) -> Timer:
    """A timer of something in this process."""

    def time_it(repeat: int) -> Sample:
        try:
            return _timed(run, repeat)
        except torch.OutOfMemoryError:
            return Sample([])
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            return Sample([])

    return time_it


def _timed(run: Callable[[], object], repeat: int) -> Sample:
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    warm = 0.0
    for _ in range(WARM_UP):
        if warm < 1:
            warm += _seconds(run)
    seconds = [_seconds(run) for _ in range(repeat)]
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
