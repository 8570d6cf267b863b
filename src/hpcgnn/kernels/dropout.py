"""Dropout of node features."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import backend
from hpcgnn.kernels.masks import Stream, Sums


def dropout_nodes(
    x_NF: Tensor,
    out_NF: Tensor,
    ids_N: Tensor,
    *,
    p: float,
    seed: int,
    epoch: int,
    layer: int,
    relu: bool = False,
    passed: Tensor | None = None,
    sums: Sums | None = None,
) -> None:
    """Set out = mask * x / (1 - p), or mask * relu(x) / (1 - p); `out` may be `x` itself.

    An entry is dropped with probability p, decided by (seed, epoch, layer, id, column) alone.

    Args:
        x_NF, out_NF: `[n, F]`; `out` is overwritten. On a GPU it may be float16 or bfloat16 where
            x is float32.
        ids_N: int64 `[n]`, original node ids.
        passed: from `new_passed`, overwritten for `dropout_nodes_backward` with about a bit per
            entry: whether it passed the ReLU and was kept.
        sums: applied to x before everything else; on a GPU only.
    """
    checks.real("x", x_NF)
    checks.probability(p)
    _same_shape("out", out_NF, x_NF, rounds=x_NF.dtype == torch.float32)
    checks.vector("ids", ids_N, torch.int64, x_NF.device, x_NF.shape[0])
    if sums is not None:
        _check_sums(sums, x_NF)
    stream = Stream.of(seed, epoch, layer)
    backend(x_NF.device).dropout_nodes(x_NF, out_NF, ids_N, p, stream, relu, passed, sums)


def new_passed(x_NF: Tensor, out_NF: Tensor) -> Tensor:
    """Return `passed` for `dropout_nodes` with relu=True: uint8 `[n, ...]`, uninitialised."""
    checks.real("x", x_NF)
    _same_shape("out", out_NF, x_NF)
    return backend(x_NF.device).new_passed(x_NF, out_NF)


def dropout_nodes_backward(
    g_NF: Tensor,
    grad_NF: Tensor,
    ids_N: Tensor,
    *,
    p: float,
    seed: int,
    epoch: int,
    layer: int,
    y_NF: Tensor | None = None,
    passed: Tensor | None = None,
) -> None:
    """Set `grad` to the gradient of `dropout_nodes` for g; `grad` may be `g` itself.

    Args:
        y_NF: `[n, F]`, the output of `dropout_nodes` with relu=True: grad = g / (1 - p) where
            y > 0, else 0. None after relu=False: grad = mask * g / (1 - p).
        passed: as `dropout_nodes` left it, in place of y.
    """
    if passed is not None:
        checks.real("g", g_NF)
        checks.probability(p)
        _same_shape("grad", grad_NF, g_NF)
        backend(g_NF.device).passed_backward(passed, g_NF, grad_NF, p)
        return
    if y_NF is None:
        dropout_nodes(g_NF, grad_NF, ids_N, p=p, seed=seed, epoch=epoch, layer=layer)
        return
    checks.real("g", g_NF)
    checks.probability(p)
    _same_shape("grad", grad_NF, g_NF)
    _same_shape("y", y_NF, g_NF)
    backend(g_NF.device).relu_dropout_backward(y_NF, g_NF, grad_NF, p)


def _check_sums(sums: Sums, x_NF: Tensor) -> None:
    (rows, width), wide = x_NF.shape, checks.sum_type(x_NF.dtype)
    checks.vector("bias", sums.bias_K, wide, x_NF.device, width)
    if sums.divisor_NH is not None:
        parts = sums.divisor_NH.shape[1]
        checks.matrix("divisor", sums.divisor_NH, like=x_NF, rows=rows, width=parts, dtype=wide)
        if parts == 0 or width % parts:
            raise InputError(
                f"kernels: the divisor's number of columns must divide {width}", value=parts
            )


def _same_shape(name: str, tensor: Tensor, like: Tensor, *, rounds: bool = False) -> None:
    """Raise InputError unless `tensor` is as `like`; with `rounds` it may be 16-bit on a GPU."""
    if like.dim() != 2 or tensor.shape[0] != like.shape[0]:
        raise InputError(
            f"kernels: {name} must have shape {tuple(like.shape)}", value=tuple(tensor.shape)
        )
    (rows, width), dtype = like.shape, like.dtype
    if rounds and tensor.dtype in checks.HALF_PRECISION:
        checks.real(name, tensor)
        dtype = tensor.dtype
    checks.matrix(name, like, like=like, rows=0, width=width)
    checks.matrix(name, tensor, like=like, rows=rows, width=width, dtype=dtype)
