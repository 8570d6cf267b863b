"""GraphSAGE (Hamilton et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords
from hpcgnn.nn.linear import Linear, NodeFeatures, narrows_first, projected
from hpcgnn.sar import products
from hpcgnn.sar.aggregation import (
    first_sum,
    in_degrees,
    is_constant,
    multiply,
    neighbour_max,
    neighbour_sum,
)
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.products import product_type, wire_type


@dataclass(frozen=True)
class _FirstSAGE:
    aggr: str


class SAGEConv(torch.nn.Module):
    """`x'_i = W_l aggr_j x_j + b + W_r x_i`; arguments as PyTorch Geometric's `SAGEConv`.

    Args:
        aggr: `mean`, `sum` (or `add`), `max` or `min`.
        project: a linear map and a ReLU before the neighbours' rows are aggregated.
    """

    hops = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        aggr: str = "mean",
        normalize: bool = False,
        root_weight: bool = True,
        project: bool = False,
        bias: bool = True,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, keywords)
        aggr = "sum" if aggr == "add" else aggr
        if aggr not in ("mean", "sum", "max", "min"):
            raise InputError("aggr must be mean, sum, max or min", value=aggr)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.aggr, self.normalize = aggr, normalize
        self.lin = Linear(in_channels, in_channels) if project else None
        self.lin_l = Linear(in_channels, out_channels, bias=bias)
        self.lin_r = Linear(in_channels, out_channels, bias=False) if root_weight else None

    def reset_parameters(self) -> None:
        for lin in (self.lin, self.lin_l, self.lin_r):
            if lin is not None:
                lin.reset_parameters()

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        check_rows(
            graph,
            x,
            who="SAGEConv",
            width=self.in_channels,
            constant=True,
            like=self.lin_l.weight,
        )
        if isinstance(x, Tensor) and self._is_short(graph, x):
            y_NF = self._fused(graph, x)
            return functional.normalize(y_NF, dim=-1) if self.normalize else y_NF
        sources_NF = x if self.lin is None else torch.relu(self.lin(x))
        y_NF = self._neighbours(graph, sources_NF)
        if self.lin_r is not None:
            if isinstance(x, Tensor) and product_type(x.device) is None:
                y_NF.addmm_(x, self.lin_r.weight.t())
            else:
                y_NF = y_NF.add_(projected(x, self.lin_r.weight))
        return functional.normalize(y_NF, dim=-1) if self.normalize else y_NF

    def _is_short(self, graph: PartitionedGraph, x_NF: Tensor) -> bool:
        """Whether a CPU takes both products of `x` in 16 bits before a sum."""
        if products.kernels_read_16_bit(x_NF.device) or product_type(x_NF.device) is None:
            return False
        plain = self.lin is None and self.lin_r is not None and self.aggr in ("mean", "sum")
        narrows = narrows_first(graph, self.in_channels, self.out_channels)
        return plain and narrows and x_NF.dtype == torch.float32 and not is_constant(graph, x_NF)

    def _fused(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        divisor_N1 = _divisors(graph, x_NF) if self.aggr == "mean" else None
        weights = self.lin_l.weight, self.lin_r.weight  # type: ignore[union-attr]
        result: Tensor = _SAGE.apply(x_NF, *weights, self.lin_l.bias, divisor_N1, graph)
        return result

    def _neighbours(self, graph: PartitionedGraph, x_NF: NodeFeatures) -> Tensor:
        lin, linear_aggr = self.lin_l, self.aggr in ("mean", "sum")
        if linear_aggr and is_constant(graph, x_NF):
            kind = _FirstSAGE(self.aggr)
            return lin(first_sum(graph, kind, lambda x_NF: self._aggregate(graph, x_NF)))
        if not isinstance(x_NF, Tensor):
            if not linear_aggr:
                raise InputError(
                    f"aggr={self.aggr} needs dense features in the memory of the device"
                )
        elif not (linear_aggr and narrows_first(graph, self.in_channels, self.out_channels)):
            return lin(self._aggregate(graph, x_NF))
        y_NF = projected(x_NF, lin.weight)
        if lin.bias is None:
            return self._aggregate(graph, y_NF)
        if self.aggr == "mean":
            y_NF = neighbour_sum(graph, y_NF, weighted=False)
            shifted: Tensor = _Mean.apply(y_NF, _divisors(graph, y_NF), lin.bias.to(y_NF.dtype))
            return shifted
        sum_NF = self._aggregate(graph, y_NF)
        return sum_NF.add_(lin.bias.to(sum_NF.dtype))

    @property
    def output_bias(self) -> Tensor | None:
        """What is added to every node's output alike."""
        return None if self.normalize else self.lin_l.bias

    def _aggregate(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        return neighbours(graph, x_NF, self.aggr)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, aggr={self.aggr}"


def neighbours(graph: PartitionedGraph, x: Tensor, aggr: str) -> Tensor:
    """`sum`, `mean`, `max` or `min` of the rows of each node's in-neighbours: `[n, F]`."""
    if aggr in ("max", "min"):
        return neighbour_max(graph, x, smallest=aggr == "min")
    sum_NF = neighbour_sum(graph, x, weighted=False)
    if aggr == "sum":
        return sum_NF
    return sum_NF.div_(_divisors(graph, sum_NF))


def _divisors(graph: PartitionedGraph, sum_NF: Tensor) -> Tensor:
    return in_degrees(graph).clamp(min=1)[:, None].to(sum_NF.dtype)


class _Mean(torch.autograd.Function):
    """`sum / divisor + bias` in one pass, in place."""

    @staticmethod
    def forward(ctx: Any, sum_NF: Tensor, divisor_N1: Tensor, bias_F: Tensor) -> Tensor:
        ctx.save_for_backward(divisor_N1)
        ctx.mark_dirty(sum_NF)
        return torch.addcdiv(bias_F, sum_NF, divisor_N1, out=sum_NF)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        (divisor_N1,) = ctx.saved_tensors
        return grads[0] / divisor_N1, None, grads[0].sum(dim=0)


class _SAGE(torch.autograd.Function):
    """`sum_j x_j W_l^T / divisor + b + x_i W_r^T`; rows are rounded once for both products."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NF: Tensor,
        left_GF: Tensor,
        right_GF: Tensor,
        bias_G: Tensor | None,
        divisor_N1: Tensor | None,
        graph: PartitionedGraph,
    ) -> Tensor:
        ctx.graph, ctx.wire, ctx.has_bias = graph, wire_type(x_NF), bias_G is not None
        ctx.save_for_backward(x_NF, left_GF, right_GF, divisor_N1)
        with torch.autocast("cpu", enabled=False):
            x_NF, left_GF, right_GF = (t.to(ctx.wire) for t in (x_NF, left_GF, right_GF))
            y_NG = x_NF @ left_GF.t()
            edges = graph.in_edges
            y_NG = multiply(graph, edges, y_NG, weighted=False, where="sum forward")
            if divisor_N1 is not None and bias_G is not None:
                torch.addcdiv(bias_G, y_NG, divisor_N1, out=y_NG)
            elif divisor_N1 is not None:
                y_NG.div_(divisor_N1)
            elif bias_G is not None:
                y_NG.add_(bias_G)
            return _plus(y_NG, x_NF, right_GF.t())

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NF, left_GF, right_GF, divisor_N1 = ctx.saved_tensors
        graph, g_NG, weight = ctx.graph, grads[0], left_GF.dtype
        grad_bias = g_NG.sum(dim=0) if ctx.has_bias else None
        into_NG = g_NG if divisor_N1 is None else g_NG / divisor_N1
        into_NG = multiply(
            graph, graph.out_edges, into_NG, weighted=False, where="sum backward", wire=ctx.wire
        )
        left_GF, right_GF = left_GF.to(ctx.wire), right_GF.to(ctx.wire)
        x_NF, g_NG, into_NG = (rows.to(ctx.wire) for rows in (x_NF, g_NG, into_NG))
        grad_left = (into_NG.t() @ x_NF).to(weight)
        grad_right = (g_NG.t() @ x_NF).to(weight)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _plus((g_NG @ right_GF).to(weight), into_NG, left_GF)
        return grad_x, grad_left, grad_right, grad_bias, None, None


def _plus(sum_NG: Tensor, x_NF: Tensor, weight_FG: Tensor) -> Tensor:
    """`sum + x W`, in place."""
    if x_NF.dtype == sum_NG.dtype:
        return sum_NG.addmm_(x_NF, weight_FG)
    return sum_NG.add_(x_NF @ weight_FG)
