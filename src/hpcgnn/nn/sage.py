"""GraphSAGE (Hamilton et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.checks import HALF_PRECISION, sum_type
from hpcgnn.nn.dropout import rectified
from hpcgnn.nn.layer import check_keywords
from hpcgnn.nn.linear import Linear, NodeFeatures, add_product, narrows_first, projected
from hpcgnn.sar import products
from hpcgnn.sar.aggregation import (
    first_sum,
    in_degrees,
    is_constant,
    neighbour_max,
    neighbour_sum,
)
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.products import product_type
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.sage import sage


@dataclass(frozen=True)
class _FirstSAGE:
    aggr: str


class SAGEConv(torch.nn.Module):
    """The GraphSAGE layer `x'_i = W_l aggr_j x_j + b + W_r x_i`.

    Arguments are those of PyTorch Geometric's `SAGEConv`.

    Args:
        aggr: `mean`, `sum` (or `add`), `max` or `min`.
        project: whether to apply a linear map and a ReLU before neighbours' rows are aggregated.
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
            raise InputError(
                f"{type(self).__name__}: aggr must be mean, sum, max or min", value=aggr
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.aggr, self.normalize = aggr, normalize
        self.lin = Linear(in_channels, in_channels) if project else None
        self.lin_l = Linear(in_channels, out_channels, bias=bias)
        self.lin_r = Linear(in_channels, out_channels, bias=False) if root_weight else None

    def reset_parameters(self) -> None:
        for lin in (self.lin, self.lin_l, self.lin_r):
            if lin is not None:
                lin.reset_parameters()

    def forward(
        self,
        graph: PartitionedGraph,
        x: NodeFeatures,
        then: ReluDropout | None = None,
        *,
        hands: bool = False,
    ) -> Tensor:
        """Map `[n, F]` to `[n, G]`.

        Args:
            then: `Dropout.rectifier` of a ReLU and dropout that follow the layer: applied here,
                they save passes over memory. Without `normalize` only.
            hands: leave rows to the layer that reads the result next, if `hands_to` it.
        """
        if then is not None and self.normalize:
            raise InputError("SAGEConv: `then` needs normalize=False")
        check_rows(
            graph,
            x,
            who="SAGEConv",
            width=self.in_channels,
            constant=True,
            like=self.lin_l.weight,
        )
        if isinstance(x, Tensor) and self._is_fused(graph, x):
            y_NF = self._fused(graph, x, then, hands)
            return functional.normalize(y_NF, dim=-1) if self.normalize else y_NF
        sources_NF = x if self.lin is None else torch.relu(self.lin(x))
        y_NF, bias_G = self._neighbours(graph, sources_NF, then)
        if self.lin_r is not None:
            if isinstance(x, Tensor) and product_type(x.device) is None:
                y_NF = add_product(y_NF, x, self.lin_r.weight)
            else:
                y_NF = y_NF.add_(projected(x, self.lin_r.weight))
        if then is not None:
            return rectified(y_NF, then, in_place=True, bias_F=bias_G)
        return functional.normalize(y_NF, dim=-1) if self.normalize else y_NF

    def _is_fused(self, graph: PartitionedGraph, x_NF: Tensor) -> bool:
        """Return whether a CPU computes the whole layer in one step.

        That needs both products before the sum, or a constant sum.
        """
        precision = product_type(x_NF.device)
        if products.kernels_read_16_bit(x_NF.device) or x_NF.dtype in HALF_PRECISION:
            return False
        if self.lin is not None or self.lin_r is None or self.aggr not in ("mean", "sum"):
            return False
        if precision is not None and x_NF.dtype != torch.float32:
            return False
        narrows = narrows_first(graph, self.in_channels, self.out_channels)
        return narrows or is_constant(graph, x_NF)

    def hands_to(self, after: torch.nn.Module, graph: PartitionedGraph, x: NodeFeatures) -> bool:
        """Return whether `after` can make rows of this layer's output between its messages.

        Nothing else may read the output before: that neither layer has hooks is tested here.
        """
        if not (type(self) is type(after) is SAGEConv and isinstance(x, Tensor)):
            return False
        if self.normalize or graph.in_edges.num_parts == 1 or graph.execution.forgets:
            return False
        if any(map(_has_hooks, (self, after))) or torch.nn.modules.module._has_any_global_hook():
            return False
        narrows = narrows_first(graph, after.in_channels, after.out_channels)
        fused = self._is_fused(graph, x) and after._is_fused(graph, x)
        return fused and narrows and is_constant(graph, x)

    def _fused(
        self, graph: PartitionedGraph, x_NF: Tensor, then: ReluDropout | None, hands: bool
    ) -> Tensor:
        divisor_N1 = _divisors(graph, x_NF) if self.aggr == "mean" else None
        sum_NF = self._first_sum(graph) if is_constant(graph, x_NF) else None
        weights = self.lin_l.weight, self.lin_r.weight  # type: ignore[union-attr]
        given = (*weights, self.lin_l.bias, divisor_N1)
        return sage(graph, x_NF, *given, sum_NF=sum_NF, then=then, hands=hands)

    def _first_sum(self, graph: PartitionedGraph) -> Tensor:
        kind = _FirstSAGE(self.aggr)
        return first_sum(graph, kind, lambda x_NF: self._aggregate(graph, x_NF))

    def _neighbours(
        self, graph: PartitionedGraph, x_NF: NodeFeatures, then: ReluDropout | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the neighbours' part of the output, and a bias that `then` must add."""
        lin, linear_aggr = self.lin_l, self.aggr in ("mean", "sum")
        if linear_aggr and is_constant(graph, x_NF):
            return lin(self._first_sum(graph)), None
        if not isinstance(x_NF, Tensor):
            if not linear_aggr:
                raise InputError(
                    f"aggr={self.aggr} needs dense features in the memory of the device"
                )
        elif not (linear_aggr and narrows_first(graph, self.in_channels, self.out_channels)):
            return lin(self._aggregate(graph, x_NF)), None
        y_NF = projected(x_NF, lin.weight)
        if lin.bias is None:
            return self._aggregate(graph, y_NF), None
        if y_NF.is_cuda and then is not None:
            return self._aggregate(graph, y_NF), lin.bias
        if self.aggr == "mean" and not y_NF.is_cuda:
            y_NF = neighbour_sum(graph, y_NF, weighted=False)
            shifted: Tensor = _Mean.apply(y_NF, _divisors(graph, y_NF), lin.bias.to(y_NF.dtype))
            return shifted, None
        sum_NF = self._aggregate(graph, y_NF)
        return sum_NF.add_(lin.bias.to(sum_NF.dtype)), None

    @property
    def output_bias(self) -> Tensor | None:
        """The bias that is added to every node's output."""
        return None if self.normalize else self.lin_l.bias

    def _aggregate(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        return neighbours(graph, x_NF, self.aggr)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, aggr={self.aggr}"


def _has_hooks(module: torch.nn.Module) -> bool:
    forward = module._forward_hooks, module._forward_pre_hooks
    return any((*forward, module._backward_hooks, module._backward_pre_hooks))


def neighbours(graph: PartitionedGraph, x: Tensor, aggr: str) -> Tensor:
    """Return the `sum`, `mean`, `max` or `min` of each node's in-neighbours' rows: `[n, F]`."""
    if aggr in ("max", "min"):
        return neighbour_max(graph, x, smallest=aggr == "min")
    if aggr == "mean" and x.is_cuda:
        share_N = graph.derived(_Shares()).to(sum_type(x.dtype))
        return neighbour_sum(graph, x, weighted=False, scale_N=share_N)
    sum_NF = neighbour_sum(graph, x, weighted=False)
    if aggr == "sum":
        return sum_NF
    return sum_NF.div_(_divisors(graph, sum_NF))


def _divisors(graph: PartitionedGraph, sum_NF: Tensor) -> Tensor:
    return in_degrees(graph).clamp(min=1)[:, None].to(sum_NF.dtype)


@dataclass(frozen=True)
class _Shares:
    """The weight of an edge in the mean of each node: float64 `[n]`."""

    def build(self, graph: PartitionedGraph) -> Tensor:
        return in_degrees(graph).clamp(min=1).double().reciprocal()


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
