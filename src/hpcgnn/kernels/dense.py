"""Products of tall dense matrices on CPUs where our own loops are faster than the library's.

A row of a result is bitwise the same for any number of rows and threads. Weights in float32 are
multiplied in float32; weights in bfloat16 are multiplied with rows rounded to bfloat16, and
accumulated in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.cpu import dense as cpu

_TAKEN = (torch.float32, torch.bfloat16)  # dtypes of rows


@dataclass(frozen=True)
class PackedWeights:
    """A weight matrix of shape (F, G) and of `dtype`, in the order in which `product` reads it."""

    panels: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype


def multiplies(dtype: torch.dtype, *matrices: Tensor) -> bool:
    """Return whether products in `dtype` accept these rows and are faster than the library's."""
    if dtype not in _TAKEN or not cpu.is_fast(dtype):
        return False
    taken = all(m.dtype in _TAKEN and m.device.type == "cpu" for m in matrices)
    return taken and all(m.stride(-1) == 1 or m.shape[-1] < 2 for m in matrices)


def factor_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which matrices are multiplied when products are requested in `dtype`.

    It is float32 for bfloat16 on a CPU without bfloat16 instructions: libraries take several times
    as long there, and rounding alone takes a quarter of the time of a product.
    """
    if dtype == torch.bfloat16 and device.type == "cpu" and not cpu.has_bf16_products():
        return torch.float32
    return dtype


def pack_weights(weight_FG: Tensor) -> PackedWeights:
    """Return a packed copy of weights `[F, G]` of any strides, float32 or bfloat16.

    It costs as much as the product with a few rows.
    """
    if weight_FG.dim() != 2 or weight_FG.dtype not in _TAKEN:
        raise InputError(
            "kernels: weights must be a float32 or bfloat16 matrix", value=weight_FG.dtype
        )
    height, width = weight_FG.shape
    return PackedWeights(cpu.pack_weights(weight_FG), (height, width), weight_FG.dtype)


def product(
    x_NF: Tensor,
    weights: PackedWeights,
    out_NG: Tensor,
    *,
    adds: bool = False,
    start_G: Tensor | None = None,
) -> None:
    """Compute out = x W, each entry a running float32 sum of 192 terms (512 in bfloat16) at a time.

    Args:
        x_NF: `[n, F]`, rows of any stride, float32 or bfloat16.
        out_NG: `[n, G]`, rows of any stride; float32, or bfloat16 with bfloat16 weights;
            overwritten, or with `adds`, which needs float32, added to.
        start_G: `[G]`, float32, added to each row that is overwritten.
    """
    height, width = weights.shape
    is_bf16 = weights.dtype == torch.bfloat16
    _check("x", x_NF, x_NF.shape[0], height, _TAKEN)
    _check("out", out_NG, x_NF.shape[0], width, _TAKEN if is_bf16 and not adds else _TAKEN[:1])
    if start_G is not None:
        _check("start", start_G[None], 1, width)
    cpu.product(x_NF, weights.panels, out_NG, is_bf16, adds, start_G)


def add_outer_products(
    a_NG: Tensor, b_NF: Tensor, out_GF: Tensor, *, dtype: torch.dtype = torch.float32
) -> None:
    """Compute out += a^T b in float32, adding the sum over a few hundred rows at a time to `out`.

    Args:
        a_NG, b_NF: `[n, G]`, `[n, F]`, rows of any stride, float32 or bfloat16.
        dtype: dtype of the products; with bfloat16 rows are rounded to it.
    """
    _check("a", a_NG, b_NF.shape[0], a_NG.shape[1], _TAKEN)
    _check("b", b_NF, b_NF.shape[0], b_NF.shape[1], _TAKEN)
    _check("out", out_GF, a_NG.shape[1], b_NF.shape[1])
    cpu.add_outer_products(a_NG, b_NF, out_GF, dtype == torch.bfloat16)


def _check(
    name: str, tensor: Tensor, rows: int, width: int, types: tuple[torch.dtype, ...] = _TAKEN[:1]
) -> None:
    dtype = tensor.dtype if tensor.dtype in types else types[0]
    checks.matrix(name, tensor, like=tensor, rows=rows, width=width, dtype=dtype)
    if tensor.device.type != "cpu":
        raise InputError(f"kernels: {name} must be on the CPU", value=tensor.device)
