"""Rows of messages and of nodes: packed, added, multiplied head by head."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import Parts, backend


def pack_rows(x_NF: Tensor, rows_R: Tensor, out_RF: Tensor) -> None:
    """out[i] = x[rows[i]], rounded to the type of `out`: a message's rows.

    Args:
        rows_R: int32 `[R]`.
        out_RF: `[R, F]`, overwritten; float16 and bfloat16 too, on a CPU as well.
    """
    _check_rows("out", out_RF, rows_R, x_NF)
    backend(x_NF.device).pack_rows(x_NF, rows_R, out_RF)


def pack_parts(parts: Parts, rows_R: Tensor) -> None:
    """`pack_rows` for each (x, out): what lies side by side in the rows of a message."""
    for x_NF, out_RF in parts:
        _check_rows("out", out_RF, rows_R, x_NF)
    if parts:
        backend(parts[0][0].device).pack_parts(parts, rows_R)


def add_rows(x_RF: Tensor, rows_R: Tensor, out_NF: Tensor) -> None:
    """out[rows[i]] += x[i]: a message's rows where they belong.

    Args:
        rows_R: int32 `[R]`, no two the same.
        out_NF: `[n, F]`, in the type of sums.
    """
    _check_rows("x", x_RF, rows_R, out_NF)
    backend(x_RF.device).add_rows(x_RF, rows_R, out_NF)


def _check_rows(name: str, message_RF: Tensor, rows_R: Tensor, nodes_NF: Tensor) -> None:
    width, count = nodes_NF.shape[1], rows_R.shape[0]
    checks.vector("rows", rows_R, torch.int32, nodes_NF.device, count)
    checks.matrix(name, message_RF, like=nodes_NF, rows=count, width=width, dtype=message_RF.dtype)


def head_dots(a_NK: Tensor, b_NK: Tensor, out_NH: Tensor, *, minus_K: Tensor | None = None) -> None:
    """out[n, h] = the inner product of head h's channels in a[n] and b[n] - minus.

    Args:
        a_NK, b_NK: `[n, heads * channels]`, a head's channels side by side.
        out_NH: `[n, heads]`, overwritten.
        minus_K: `[heads * channels]` in the type of sums; 0 without.
    """
    checks.real("a", a_NK)
    heads = out_NH.shape[-1]
    if heads == 0 or a_NK.shape[-1] % heads:
        raise InputError("kernels: the width of a must be a multiple of the heads", value=heads)
    num_rows, width = a_NK.shape
    for name, tensor in (("a", a_NK), ("b", b_NK)):
        checks.matrix(name, tensor, like=a_NK, rows=num_rows, width=width)
    dtype = checks.sum_type(a_NK.dtype)
    checks.matrix("out", out_NH, like=a_NK, rows=num_rows, width=heads, dtype=dtype)
    if minus_K is not None:
        checks.matrix("minus", minus_K[None], like=a_NK, rows=1, width=width, dtype=dtype)
    backend(a_NK.device).head_dots(a_NK, b_NK, out_NH, minus_K)
