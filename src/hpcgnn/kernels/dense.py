"""Products of tall dense matrices on a CPU, where a loop of our own is faster than the library's.

Rows of a result have the same bits however many rows and threads there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.cpu import dense as cpu


@dataclass(frozen=True)
class PackedWeights:
    """W, `shape` (F, G), in the order in which `product` reads it."""

    panels: Tensor
    shape: tuple[int, int]


def multiplies(*matrices: Tensor) -> bool:
    """Whether `product` and `add_outer_products` take these, and are the faster ones here."""
    taken = all(m.dtype == torch.float32 and m.device.type == "cpu" for m in matrices)
    return taken and all(m.stride(-1) == 1 or m.shape[-1] < 2 for m in matrices) and cpu.is_fast()


def pack_weights(weight_FG: Tensor) -> PackedWeights:
    """A copy of float32 weights `[F, G]` of any strides, which costs as much as few rows do."""
    if weight_FG.dim() != 2 or weight_FG.dtype != torch.float32:
        raise InputError("kernels: weights must be a float32 matrix", value=weight_FG.dtype)
    height, width = weight_FG.shape
    return PackedWeights(cpu.pack_weights(weight_FG), (height, width))


def product(
    x_NF: Tensor,
    weights: PackedWeights,
    out_NG: Tensor,
    *,
    adds: bool = False,
    start_G: Tensor | None = None,
) -> None:
    """out = x W, float32, a running sum for each entry in blocks of 192.

    Args:
        x_NF: `[n, F]`, rows of any stride.
        out_NG: `[n, G]`, likewise; overwritten, or added to with `adds`.
        start_G: `[G]`, is added to each row that is overwritten.
    """
    height, width = weights.shape
    _check("x", x_NF, x_NF.shape[0], height)
    _check("out", out_NG, x_NF.shape[0], width)
    if start_G is not None:
        _check("start", start_G[None], 1, width)
    cpu.product(x_NF, weights.panels, out_NG, adds, start_G)


def add_outer_products(a_NG: Tensor, b_NF: Tensor, out_GF: Tensor) -> None:
    """out += a^T b, float32: of about 200 rows at a time, whose sums are then added to `out`.

    Args:
        a_NG, b_NF: `[n, G]`, `[n, F]`, rows of any stride.
    """
    _check("a", a_NG, b_NF.shape[0], a_NG.shape[1])
    _check("b", b_NF, b_NF.shape[0], b_NF.shape[1])
    _check("out", out_GF, a_NG.shape[1], b_NF.shape[1])
    cpu.add_outer_products(a_NG, b_NF, out_GF)


def _check(name: str, tensor: Tensor, rows: int, width: int) -> None:
    checks.matrix(name, tensor, like=tensor, rows=rows, width=width, dtype=torch.float32)
    if tensor.device.type != "cpu":
        raise InputError(f"kernels: {name} must be on the CPU", value=tensor.device)
