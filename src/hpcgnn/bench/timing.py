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
    """Seconds of each repetition, empty if memory was short, and peak device memory."""

    seconds: list[float]
    peak_bytes: int | None = None  # None on a CPU


TURNS = 3  # per implementation, on a CPU
WARM_UP = 5  # repetitions: on virtual machines, the first access to a page takes ten times as long
Timer = Callable[[int], Sample]  # takes the repetitions to count, after up to a second of others


@dataclass(frozen=True)
class Row:
    """One operation of one implementation.

    Attributes:
        seconds: median; None if memory was short.
        ratio: `seconds` over ours.
        peak_bytes: peak device memory above what was allocated before; None on a CPU.
        num_bytes, share: for bare kernels, bytes moved, and their rate over that of a copy.
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
    """Return medians and ratios to `ours`, of `repeat` repetitions, in three turns if `in_turns`.

    By taking turns, all see the same drift of the machine's speed; a GPU doesn't drift.
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
        raise InputError("bench: not enough memory for this size", value=operation)
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
    """Return a timer of a call in this process."""

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
        torch.cuda.empty_cache()  # for the next implementation
    return Sample(seconds, peak)


def _seconds(run: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


_COPIED = {"cpu": 256 << 20, "cuda": 2 << 30}  # bytes, many times any cache
_INDEX = 4


def copy_bandwidth(device: torch.device, repeat: int) -> float:
    """Return bytes per second of a large copy, counting both bytes read and bytes written."""
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
    """A kernel call and the bytes it moves if every gathered row is read from memory."""

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
    """Return each kernel's time and its share of a copy's bandwidth, `copied`.

    `block` has all rows. A share above 1 means that rows were found in a cache.
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
