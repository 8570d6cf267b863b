"""Dense layers that accept dense or sparse node features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.graph.features import HostRows, NodeFeatures, SparseRows
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_width
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_features
from hpcgnn.sar.mixed_precision import product_type, readable
from hpcgnn.sar.products import product, refill, shell, weight_gradient


def narrows_first(graph: PartitionedGraph, inputs: int, outputs: int) -> bool:
    """Whether weights multiply dense features before the sum over neighbours; others they must."""
    return graph.execution.narrow_first and outputs <= inputs


class Linear(torch.nn.Module):
    """`y = x W^T + b` for `x` a `[n, F]` tensor, `SparseRows` or `HostRows`.

    Args:
        weight_initializer: `glorot` or `kaiming_uniform`, as in PyTorch Geometric's `Linear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        weight_initializer: str = "kaiming_uniform",
    ) -> None:
        super().__init__()
        check_width(self, "in_channels", in_channels)
        check_width(self, "out_channels", out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight_initializer = weight_initializer
        self.weight = torch.nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = torch.nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight_initializer == "glorot":
            glorot(self.weight)
        else:
            bound = 1 / math.sqrt(max(self.in_channels, 1))
            torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(max(self.in_channels, 1))
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: NodeFeatures) -> Tensor:
        check_features(
            x, who=type(self).__name__, width=self.in_channels, constant=True, like=self.weight
        )
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"


def glorot(weight: Tensor) -> None:
    """Uniform in ±sqrt(6 / (fan in + fan out)), the last two dimensions (Glorot & Bengio 2010)."""
    bound = math.sqrt(6 / max(weight.shape[-2] + weight.shape[-1], 1))
    torch.nn.init.uniform_(weight, -bound, bound)


def zero(bias: Tensor | None) -> None:
    if bias is not None:
        torch.nn.init.zeros_(bias)


def linear(x_NF: NodeFeatures, weight_GF: Tensor, bias_G: Tensor | None = None) -> Tensor:
    """`x W^T + b`: `[n, F]` by `[G, F]` to `[n, G]`; 16-bit under autocast on a GPU."""
    if not isinstance(x_NF, Tensor):
        y_NG: Tensor = _ConstantLinear.apply(weight_GF, x_NF)
        return y_NG if bias_G is None else y_NG + bias_G
    return readable(functional.linear(x_NF, weight_GF, bias_G))


class _ConstantLinear(torch.autograd.Function):
    """Constant features, sparse or in host memory, times weights."""

    @staticmethod
    def forward(ctx: Any, weight_GF: Tensor, x: SparseRows | HostRows) -> Tensor:
        ctx.x, held = shell(x)
        ctx.save_for_backward(*held)
        ctx.precision = product_type(weight_GF.device)
        with torch.autocast(weight_GF.device.type, enabled=False):
            return product(x, weight_GF, ctx.precision)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return weight_gradient(refill(ctx.x, ctx.saved_tensors), grads[0], ctx.precision), None
