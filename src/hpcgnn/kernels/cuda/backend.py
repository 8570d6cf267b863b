"""The CUDA kernels: the same functions as `cpu`, on torch's current stream.

Tensors are handed over as they are (device pointers), outputs are torch's. Features may also be
float16 or bfloat16; sums are then float32. Results are bitwise the same in every run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpcgnn.kernels.block import Block
from hpcgnn.kernels.cuda.gat import gat_backward, gat_forward
from hpcgnn.kernels.cuda.gatv2 import gatv2_backward, gatv2_forward
from hpcgnn.kernels.cuda.launch import THREADS, WARP, launch, matrix, pointer
from hpcgnn.kernels.cuda.shapes import NAMES, RowShape, power_of_two, vector_width
from hpcgnn.kernels.cuda.sums import (
    range_rows,
    spmm,
    spmm_max,
    spmm_max_backward,
    transpose,
)
from hpcgnn.kernels.masks import Stream

__all__ = [
    "add_rows",
    "between",
    "dropout_nodes",
    "gat_backward",
    "gat_forward",
    "gatv2_backward",
    "gatv2_forward",
    "head_dots",
    "pack_rows",
    "range_rows",
    "relu_dropout_backward",
    "spmm",
    "spmm_max",
    "spmm_max_backward",
    "transpose",
]

_SLAB = 1 << 18  # rows whose products lie in memory at a time


def between(block: Block, low: int, high: int) -> tuple[Tensor, Tensor]:
    return _lower_bound(block, low), _lower_bound(block, high)


def _lower_bound(block: Block, column: int) -> Tensor:
    """First edge of each row whose column is at least `column`; bisects all rows at once."""
    low, high = block.begin.clone(), block.end.clone()
    longest = int((high - low).max()) if len(low) else 0
    last = max(block.columns.shape[0] - 1, 0)
    for _ in range(longest.bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (block.columns[middle.clamp(max=last)] < column)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low


def pack_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[i] = x[rows[i]], rounded to the type of `out`; rows int32."""
    _rows("pack_rows", x, rows, out)


def add_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[rows[i]] += x[i]; rows int32, no two the same."""
    _rows("add_rows", x, rows, out)


def _rows(kernel: str, x: Tensor, rows: Tensor, out: Tensor) -> None:
    width = x.shape[1]
    if len(rows) == 0 or width == 0:
        return
    vector = vector_width(width, (x, out))
    shape = RowShape.of(width, vector, 0)
    launch(
        "rows",
        f"{kernel}<{NAMES[x.dtype]}, {NAMES[out.dtype]}, {vector}>",
        shape.blocks(len(rows)),
        (
            *matrix(x),
            pointer(rows),
            np.int64(len(rows)),
            *matrix(out),
            np.int32(width),
            np.int32(shape.lanes_log),
        ),
        x.device,
    )


def head_dots(a: Tensor, b: Tensor, out: Tensor, minus: Tensor | None) -> None:
    for low in range(0, len(a), _SLAB):
        rows = slice(low, low + _SLAB)
        product_RK = a[rows].to(out.dtype) * (b[rows] if minus is None else b[rows] - minus)
        out[rows] = product_RK.view(len(product_RK), out.shape[1], -1).sum(-1)


def dropout_nodes(
    x: Tensor, out: Tensor, ids: Tensor, p: float, stream: Stream, relu: bool
) -> None:
    if x.numel() == 0:
        return
    vector, lanes_log, blocks = _patches((x, out))
    launch(
        "dropout",
        f"dropout<{NAMES[x.dtype]}, {vector}>",
        blocks,
        (
            *matrix(x),
            *matrix(out),
            pointer(ids),
            np.int64(x.shape[0]),
            np.int32(x.shape[1]),
            np.float64(p),
            *map(np.uint64, stream),
            np.int32(relu),
            np.int32(lanes_log),
        ),
        x.device,
    )


def relu_dropout_backward(y: Tensor, g: Tensor, out: Tensor, p: float) -> None:
    if g.numel() == 0:
        return
    vector, lanes_log, blocks = _patches((y, g, out))
    launch(
        "dropout",
        f"relu_dropout_backward<{NAMES[g.dtype]}, {vector}>",
        blocks,
        (
            *matrix(y),
            *matrix(g),
            *matrix(out),
            np.int64(g.shape[0]),
            np.int32(g.shape[1]),
            np.float64(p),
            np.int32(lanes_log),
        ),
        g.device,
    )


def _patches(tensors: tuple[Tensor, ...]) -> tuple[int, int, tuple[int, int]]:
    """Vector width, log of the lanes on a row, and blocks."""
    rows, width = tensors[0].shape
    vector = vector_width(width, tensors)
    lanes = min(power_of_two(width // vector), WARP)
    return vector, lanes.bit_length() - 1, (-(-rows * lanes // THREADS), 1)
