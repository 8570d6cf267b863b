"""The CUDA kernels: the same functions as `cpu`, on torch's current stream.

Tensors are passed without copies, as device pointers; outputs are torch tensors. Features may also
be float16 or bfloat16; sums are then float32. Results are bitwise the same in every run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hpcgnn.kernels.backend import Parts
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.kernels.cuda.dropout import dropout_nodes as dropout_nodes
from hpcgnn.kernels.cuda.dropout import new_passed as new_passed
from hpcgnn.kernels.cuda.dropout import passed_backward as passed_backward
from hpcgnn.kernels.cuda.dropout import relu_dropout_backward as relu_dropout_backward
from hpcgnn.kernels.cuda.gat import gat_backward as gat_backward
from hpcgnn.kernels.cuda.gat import gat_forward as gat_forward
from hpcgnn.kernels.cuda.gat import head_dots as head_dots
from hpcgnn.kernels.cuda.gat import head_scores as head_scores
from hpcgnn.kernels.cuda.gatv2 import gatv2_backward as gatv2_backward
from hpcgnn.kernels.cuda.gatv2 import gatv2_forward as gatv2_forward
from hpcgnn.kernels.cuda.launch import int32, int64, launch, matrices, matrix, pointer
from hpcgnn.kernels.cuda.shapes import NAMES, RowShape, vector_width
from hpcgnn.kernels.cuda.sums import range_rows as range_rows
from hpcgnn.kernels.cuda.sums import spmm as spmm
from hpcgnn.kernels.cuda.sums import spmm_max as spmm_max
from hpcgnn.kernels.cuda.sums import spmm_max_backward as spmm_max_backward
from hpcgnn.kernels.cuda.sums import transpose as transpose

WHOLE_BLOCKS = False
_MOST_SCALARS = 3  # most matrices of scalars that are packed in one launch


def between(
    block: Block, low: int, high: int, picked: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if picked is not None:
        few = replace(block, rows=picked, begin=block.begin[picked], end=block.end[picked])
        rows = picked if block.rows is None else block.rows[picked]
        return rows, _lower_bound(few, low), _lower_bound(few, high)
    begin, end = _lower_bound(block, low), _lower_bound(block, high)
    kept = torch.nonzero(begin < end).flatten()
    rows = kept.to(torch.int32) if block.rows is None else block.rows[kept]
    return rows, begin[kept], end[kept]


def _lower_bound(block: Block, column: int) -> Tensor:
    """Return each row's first edge whose column is at least `column`; bisect all rows at once."""
    low, high = block.begin.clone(), block.end.clone()
    longest = int((high - low).max()) if len(low) else 0
    last = max(block.columns.shape[0] - 1, 0)
    for _ in range(longest.bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (block.columns[middle.clamp(max=last)] < column)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low


def pack_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """Set out[i] = x[rows[i]], rounded to the dtype of `out`; `rows` is int32."""
    _rows("pack_rows", x, rows, out)


def pack_parts(parts: Parts, rows: Tensor) -> None:
    """Pack features and up to three matrices of scalars, as attention sends them, in one launch."""
    (x, out), scalars = parts[0], parts[1:]
    if not _one_launch(x, scalars) or len(rows) == 0 or x.shape[1] == 0:
        for given, taken in parts:
            pack_rows(given, rows, taken)
        return
    width, heads = x.shape[1], scalars[0][0].shape[1]
    vector = vector_width(width, (x, out))
    shape = RowShape.of(width // vector + len(scalars) * heads, 1, 0)
    missing = [(np.uintp(0), int64(0))] * (_MOST_SCALARS - len(scalars))
    launch(
        "rows",
        f"pack_message<{NAMES[x.dtype]}, {NAMES[out.dtype]}, {vector}>",
        shape.blocks(len(rows)),
        (
            *matrix(x),
            pointer(rows),
            int64(len(rows)),
            *matrix(out),
            *matrices(*(given for given, _ in scalars)),
            *(argument for pair in missing for argument in pair),
            *matrix(scalars[0][1]),
            *map(int32, (width, heads, len(scalars), shape.lanes_log)),
        ),
        x.device,
    )


def _one_launch(x: Tensor, scalars: Parts) -> bool:
    """Return whether these are a few matrices of one width that are packed side by side."""
    if not 0 < len(scalars) <= _MOST_SCALARS:
        return False
    given, taken = scalars[0]
    step = given.shape[1] * given.element_size()
    return step > 0 and all(
        a.shape == given.shape
        and a.dtype == b.dtype == sum_type(x.dtype)
        and b.stride(0) == taken.stride(0)
        and int(pointer(b)) == int(pointer(taken)) + i * step
        for i, (a, b) in enumerate(scalars)
    )


def add_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """Compute out[rows[i]] += x[i]; `rows` is int32, without duplicates."""
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
            int64(len(rows)),
            *matrix(out),
            int32(width),
            int32(shape.lanes_log),
        ),
        x.device,
    )
