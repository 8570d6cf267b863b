"""Checks that tensors fit a block: a few comparisons per call, none of them per edge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels.attention import RunningSoftmax
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.masks import EdgeDropout

REAL = (torch.float32, torch.float64)
HALF_PRECISION = (torch.float16, torch.bfloat16)  # on a GPU


def matrix(
    name: str,
    tensor: Tensor,
    *,
    like: Tensor,
    rows: int,
    width: int,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise InputError unless `tensor` is `[rows or more, width]`, of `like`'s type and device."""
    dtype = like.dtype if dtype is None else dtype
    if tensor.dim() != 2 or tensor.shape[0] < rows or tensor.shape[1] != width:
        raise InputError(
            f"kernels: {name} must have shape [{rows}, {width}]", value=tuple(tensor.shape)
        )
    if tensor.dtype != dtype:
        raise InputError(f"kernels: {name} must be {dtype}", value=str(tensor.dtype))
    if tensor.device != like.device:
        raise InputError(f"kernels: {name} must be on {like.device}", value=str(tensor.device))
    if width > 1 and tensor.shape[0] > 0 and tensor.stride(1) != 1:
        raise InputError(
            f"kernels: {name} must have adjacent columns; call .contiguous()", value=tensor.stride()
        )


def real(name: str, tensor: Tensor) -> None:
    """Raise InputError unless `tensor` is float32 or float64, or on a GPU float16 or bfloat16."""
    if tensor.dtype in REAL or (tensor.dtype in HALF_PRECISION and tensor.device.type == "cuda"):
        return
    raise InputError(
        f"kernels: {name} must be float32 or float64 (on a GPU float16 or bfloat16 too)",
        value=str(tensor.dtype),
    )


def gathered(name: str, tensor: Tensor) -> None:
    """Raise InputError as `real` does, but allow bfloat16 on a CPU too: for rows to be summed."""
    if tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu":
        real(name, tensor)


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which values of `dtype` are accumulated."""
    return torch.float32 if dtype in HALF_PRECISION else dtype


def added_to(name: str, tensor: Tensor, *, like: Tensor, rows: int, width: int) -> None:
    """Raise InputError as `matrix` does, for sums of rows of `like`, whose dtype may differ.

    Sums of 16-bit rows may be float32, and on a CPU must be; on a GPU, sums of float32 rows may
    be float16 or bfloat16.
    """
    types: tuple[torch.dtype, ...] = (like.dtype,)
    if like.dtype in HALF_PRECISION:
        only_gathered = like.device.type == "cpu" and like.dtype not in REAL
        types = (torch.float32,) if only_gathered else (like.dtype, torch.float32)
    if like.dtype == torch.float32 and like.device.type == "cuda":
        types = (torch.float32, *HALF_PRECISION)
    dtype = tensor.dtype if tensor.dtype in types else types[0]
    matrix(name, tensor, like=like, rows=rows, width=width, dtype=dtype)


def vector(
    name: str, tensor: Tensor | None, dtype: torch.dtype, device: torch.device, length: int
) -> None:
    """Raise InputError unless `tensor` is None or contiguous, `[length or more]`, of this type."""
    if tensor is None:
        return
    if tensor.dtype != dtype or tensor.device != device:
        raise InputError(
            f"kernels: {name} must be {dtype} on {device}",
            value=f"{tensor.dtype} on {tensor.device}",
        )
    if not tensor.is_contiguous() or tensor.shape[0] < length:
        raise InputError(
            f"kernels: {name} must be contiguous with {length} entries", value=tuple(tensor.shape)
        )


@dataclass(frozen=True)
class _Checked:
    """The check of a block's arrays, which is made once, as they don't change."""

    device: torch.device

    def build(self, block: Block, /) -> None:
        device, edges = self.device, block.columns.shape[0]
        vector("block.rows", block.rows, torch.int32, device, block.num_rows)
        vector("block.begin", block.begin, torch.int64, device, block.num_rows)
        vector("block.end", block.end, torch.int64, device, block.num_rows)
        vector("block.columns", block.columns, torch.int32, device, 0)
        vector("block.weight", block.weight, torch.float32, device, edges)
        vector("block.relation", block.relation, torch.int32, device, edges)
        vector("block.features", block.features, torch.float32, device, edges)


def block_on(block: Block, device: torch.device) -> None:
    """Raise InputError unless the block's arrays have their documented types on `device`."""
    block.derived(_Checked(device))


def row_range(block: Block, rows: tuple[int, int] | None) -> tuple[int, int]:
    """Return the range of rows to process, all for None. Raises InputError outside the block."""
    if rows is None:
        return 0, block.num_rows
    low, high = rows
    if not 0 <= low <= high <= block.num_rows:
        raise InputError(f"kernels: rows must lie in 0..{block.num_rows}", value=rows)
    return low, high


def num_local_rows(block: Block) -> int:
    """Return the least number of rows of outputs; 0 if the row list is in a GPU's memory."""
    if block.rows is None:
        return block.num_rows
    if block.rows.device.type != "cpu" or block.num_rows == 0:
        return 0
    return int(block.rows[-1]) + 1


def probability(p: float) -> None:
    """Raise InputError unless p is in [0, 1)."""
    if not 0 <= p < 1:
        raise InputError("kernels: the dropout probability must be in [0, 1)", value=p)


def attention(block: Block, z: Tensor, heads: int, dropout: EdgeDropout | None) -> None:
    """Raise InputError unless heads divide z's width and the dropout's p is in [0, 1)."""
    block_on(block, z.device)
    if dropout is not None:
        probability(dropout.p)
    if z.dim() != 2 or heads == 0 or z.shape[1] % heads:
        raise InputError(
            f"kernels: the number of columns of z must be a multiple of {heads} heads",
            value=tuple(z.shape),
        )


def feature_width(block: Block) -> int:
    """Return the width of the block's edge features. Raises InputError if it has none."""
    if block.features is None:
        raise InputError("kernels: an edge weight needs a block with edge features")
    return block.features.shape[1]


def running_softmax(softmax: RunningSoftmax, *, like: Tensor, rows: int, heads: int) -> None:
    """Raise InputError unless `softmax` fits sums of rows of `like` and has `rows` or more rows."""
    dtype, width = sum_type(like.dtype), like.shape[1]
    for name, scalars in (("row_max", softmax.row_max), ("row_sum", softmax.row_sum)):
        matrix(name, scalars, like=like, rows=rows, width=heads, dtype=dtype)
    matrix("out", softmax.out, like=like, rows=rows, width=width, dtype=dtype)


def vector_of_ids(dropout: EdgeDropout | None, *, sources: int, destinations: int) -> None:
    """Raise InputError unless the dropout has an int64 id for every source and destination."""
    if dropout is None:
        return
    device = dropout.source_ids.device
    vector("dropout.source_ids", dropout.source_ids, torch.int64, device, sources)
    vector("dropout.destination_ids", dropout.destination_ids, torch.int64, device, destinations)
