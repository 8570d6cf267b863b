"""Our kernels alone against the speed at which this device copies memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.bench.timing import Row, compare, local, synchronise
from hpcgnn.graph import Block

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
    block: Block, width: int, heads: int, channels: int, dtype: torch.dtype, repeat: int
) -> list[Row]:
    """Each kernel's time and its share of the copy bandwidth; `block` has all rows.

    A share above 1 means that rows were found in a cache.
    """
    copied = copy_bandwidth(block.device, repeat)
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
    softmax = torch.full_like(s, -torch.inf), torch.zeros_like(s), rows(total, wide)
    grads = rows(total, wide), torch.zeros_like(s), torch.zeros_like(s)
    shape = f"{heads} x {channels}"
    return {
        f"sum, width {width}": Work(
            lambda: kernels.spmm(block, x, out),
            edges * (width * size + _INDEX) + 2 * nodes * width * sums,
        ),
        f"attention {shape} forward": Work(
            lambda: kernels.attention_forward(block, z, s, t, *softmax, slope=0.2),
            edges * (total * size + heads * sums + _INDEX) + 2 * nodes * total * sums,
        ),
        f"attention {shape} backward": Work(
            lambda: kernels.attention_backward(block, g, t, lse, d, z, s, *grads, slope=0.2),
            edges * (total * size + 4 * heads * sums + _INDEX) + nodes * total * (size + 2 * sums),
        ),
    }
