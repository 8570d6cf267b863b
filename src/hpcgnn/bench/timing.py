"""Timing several implementations of one operation side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.kernels.block import Block


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


_COPIED = {"cpu": 256 << 20, "cuda": 2 << 30}  # bytes, many times any cache
_INDEX = 4


def copy_bandwidth(device: torch.device, repeat: int) -> float:
    """Bytes per second of a large copy, what is read and what is written both counted."""
    source = torch.ones(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repeat + 1):
        synchronise()
        start = time.perf_counter()
        target.copy_(source)
        synchronise()
        seconds.append(time.perf_counter() - start)
    return 2 * len(source) / statistics.median(seconds[1:])


@dataclass(frozen=True)
class Work:
    """A kernel to run and the bytes it moves where every gathered row is read from memory."""

    run: Callable[[], object]
    num_bytes: int


def kernel_rows(
    block: Block,
    width: int,
    heads: int,
    channels: int,
    dtype: torch.dtype,
    repeat: int,
    copied: float,
) -> list[Row]:
    """Each kernel's time and its share of the bandwidth of a copy, `copied`; `block` has all rows.

    A share above 1 means that rows were found in a cache.
    """
    name = str(dtype).removeprefix("torch.")
    rows = []
    for operation, work in _works(block, width, heads, channels, dtype).items():
        title, timers = f"kernel {operation}, {name}", {"hpcgnn": local(work.run)}
        (row,) = compare(title, timers, repeat, "hpcgnn", in_turns=False)
        share = work.num_bytes / row.seconds / copied if row.seconds else None
        rows.append(replace(row, num_bytes=work.num_bytes, share=share))
    return rows


def _works(
    block: Block, width: int, heads: int, channels: int, dtype: torch.dtype
) -> dict[str, Work]:
    nodes, edges = block.num_rows, block.columns.shape[0]
    device, total = block.device, heads * channels
    wide = kernels.checks.sum_type(dtype)
    size, sums = dtype.itemsize, wide.itemsize

    def rows(columns: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(nodes, columns, device=device).to(kind)

    x, out = rows(width), rows(width, wide)
    z, g = rows(total), rows(total)
    s, t, lse, d = (rows(heads, wide) for _ in range(4))
    sources, destinations = kernels.Sources(z, s), kernels.Destinations(g, t, lse, d)
    softmax = kernels.RunningSoftmax.zeros(nodes, heads, total, dtype=wide, device=device)
    grads = kernels.GATGradients(rows(total, wide), torch.zeros_like(s), torch.zeros_like(s))
    scoring = kernels.Scoring(slope=0.2)
    att = torch.randn(heads, channels, device=device, dtype=wide)
    ends = kernels.Projections(z, rows(total), att)
    result = kernels.ResultGradient(g, lse, d)
    both = kernels.GATv2Gradients(grads.z, rows(total, wide), torch.zeros_like(att))
    shape = f"{heads} x {channels}"
    return {
        f"sum, width {width}": Work(
            lambda: kernels.spmm(block, x, out),
            edges * (width * size + _INDEX) + 2 * nodes * width * sums,
        ),
        f"attention {shape} forward": Work(
            lambda: kernels.gat_forward(block, sources, t, softmax, scoring),
            edges * (total * size + heads * sums + _INDEX) + 2 * nodes * total * sums,
        ),
        f"attention {shape} backward": Work(
            lambda: kernels.gat_backward(block, destinations, sources, grads, scoring),
            edges * (total * size + 4 * heads * sums + _INDEX) + nodes * total * (size + 2 * sums),
        ),
        f"GATv2 {shape} forward": Work(
            lambda: kernels.gatv2_forward(block, ends, softmax, scoring),
            edges * (total * size + _INDEX) + nodes * total * (size + 2 * sums),
        ),
        # By destination, which gathers zl; then by source, which gathers zr, g, lse and d.
        f"GATv2 {shape} backward": Work(
            lambda: kernels.gatv2_backward(block, ends, result, both, scoring),
            edges * (3 * total * size + 2 * heads * sums + 2 * _INDEX)
            + nodes * total * (3 * size + 4 * sums),
        ),
    }
