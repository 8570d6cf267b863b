"""Jumping knowledge (Xu et al. 2018) without an array of all layers: each is absorbed at once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hpcgnn.nn.linear import Linear, linear
from hpcgnn.sar.autograd import first_order


def largest(layers: Iterable[Tensor]) -> Tensor:
    """The largest of all layers, number by number: `[n, F]`; ties go to the earliest layer."""
    return reduce(_Larger.apply, layers)


def linear_of_all(layers: Iterable[Tensor], head: Linear) -> Tensor:
    """`head` of all layers side by side: `[n, F]` each to `[n, C]`.

    A product per layer, before the next layer: so backward holds one layer's gradient at a time.
    """
    out_NC: Tensor = head.weight.new_zeros(1) if head.bias is None else head.bias
    columns = 0
    for y_NF in layers:
        weight_CF = head.weight[:, columns : columns + y_NF.shape[1]]
        out_NC = out_NC + linear(y_NF, weight_CF)
        columns += y_NF.shape[1]
    return out_NC


class _Larger(torch.autograd.Function):
    """Keeps one byte per number for backward."""

    @staticmethod
    def forward(ctx: Any, a_NF: Tensor, b_NF: Tensor) -> Tensor:
        ctx.save_for_backward(b_NF > a_NF)
        return torch.maximum(a_NF, b_NF)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (second_NF,) = ctx.saved_tensors
        return grads[0].masked_fill(second_NF, 0), grads[0] * second_NF
