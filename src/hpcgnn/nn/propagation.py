"""Layers that propagate without weights: APPNP, SGC, DAGNN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.gcn import normalised_sum
from hpcgnn.nn.layer import check_keywords, check_width
from hpcgnn.nn.linear import Linear, NodeFeatures, linear, narrows_first
from hpcgnn.sar.aggregation import first_sum, is_constant, neighbour_sum
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.products import dense_rows


class APPNP(torch.nn.Module):
    """`K` steps of personalised PageRank with teleport probability `alpha` (Gasteiger et al. 2019).

    As PyTorch Geometric's `APPNP(K, alpha)`: `x <- (1 - alpha) A' x + alpha x_0`.

    Args:
        dropout: must be 0: dropout of edge weights is not supported.
        cached: has no effect: the normalisation of a graph is always computed once and kept.
        normalize: if False, `A'` is the weighted adjacency matrix as it is, without loops.
    """

    def __init__(
        self,
        K: int,
        alpha: float,
        dropout: float = 0.0,
        cached: bool = False,
        add_self_loops: bool = True,
        normalize: bool = True,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(
            self, {"dropout": float(dropout), **keywords}, dropout=(0.0,), aggr=("add", "sum")
        )
        check_width(self, "K", K)
        self.K, self.alpha = K, alpha
        self.add_self_loops, self.normalize = add_self_loops, normalize

    @property
    def hops(self) -> int:
        return self.K

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        check_rows(graph, x, who="APPNP", constant=True)
        x_NF = dense_rows(x, graph.node_ids.device)
        start_NF, loop = x_NF, 1.0 if self.add_self_loops else None
        for _ in range(self.K):
            if self.normalize:
                sum_NF = normalised_sum(graph, x_NF, loop)
            else:
                sum_NF = neighbour_sum(graph, x_NF)
            x_NF = torch.add(sum_NF * (1 - self.alpha), start_NF, alpha=self.alpha)
        return x_NF


@dataclass(frozen=True)
class _FirstSGC:
    steps: int
    add_self_loops: bool


class SGConv(torch.nn.Module):
    """The simple convolution `A'^K x W^T + b` (Wu et al. 2019), as PyTorch Geometric's `SGConv`.

    Products of constant input features with `A'^K` are computed once, whatever `cached` is.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        K: int = 1,
        cached: bool = False,
        add_self_loops: bool = True,
        bias: bool = True,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, keywords, aggr=("add", "sum"))
        check_width(self, "K", K)
        self.in_channels, self.out_channels, self.K = in_channels, out_channels, K
        self.add_self_loops = add_self_loops
        self.lin = Linear(in_channels, out_channels, bias=bias)

    @property
    def hops(self) -> int:
        return self.K

    def reset_parameters(self) -> None:
        self.lin.reset_parameters()

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        check_rows(
            graph, x, who="SGConv", width=self.in_channels, constant=True, like=self.lin.weight
        )
        if is_constant(graph, x):
            kind = _FirstSGC(self.K, self.add_self_loops)
            powered = first_sum(graph, kind, lambda x_NF: self._power(graph, x_NF))
            return linear(powered, self.lin.weight, self.lin.bias)
        if isinstance(x, Tensor) and not narrows_first(graph, self.in_channels, self.out_channels):
            return linear(self._power(graph, x), self.lin.weight, self.lin.bias)
        y_NF = self._power(graph, linear(x, self.lin.weight))
        return y_NF if self.lin.bias is None else y_NF + self.lin.bias

    @property
    def output_bias(self) -> Tensor | None:
        """The bias that is added to every node's output."""
        return self.lin.bias

    def _power(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        for _ in range(self.K):
            x_NF = normalised_sum(graph, x_NF, 1.0 if self.add_self_loops else None)
        return x_NF


class AdaptiveDepth(torch.nn.Module):
    """A sum over all numbers of steps up to `K`, gated per node (DAGNN, Liu et al. 2020).

    `out = sum_k sigmoid(<s, x_k>) x_k` with `x_k = A'^k x_0`.
    """

    def __init__(self, channels: int, K: int) -> None:
        super().__init__()
        check_width(self, "K", K)
        self.K = K
        self.gate = Linear(channels, 1)

    @property
    def hops(self) -> int:
        return self.K

    def reset_parameters(self) -> None:
        self.gate.reset_parameters()

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        check_rows(graph, x, who="AdaptiveDepth", width=self.gate.in_channels, constant=True)
        x_NF = dense_rows(x, graph.node_ids.device)
        out_NF = x_NF * torch.sigmoid(self.gate(x_NF))
        for _ in range(self.K):
            x_NF = normalised_sum(graph, x_NF)
            out_NF = torch.addcmul(out_NF, x_NF, torch.sigmoid(self.gate(x_NF)))
        return out_NF


class Pointwise(Linear):
    """A linear map of each node's own row, called like a convolution."""

    hops = 0

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:  # type: ignore[override]
        check_rows(
            graph, x, who="Pointwise", width=self.in_channels, constant=True, like=self.weight
        )
        return linear(x, self.weight, self.bias)
