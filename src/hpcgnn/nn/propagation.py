"""Layers that propagate without weights: APPNP, SGC, DAGNN."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph import PartitionedGraph
from hpcgnn.nn.gcn import normalised_sum
from hpcgnn.nn.linear import Linear, NodeFeatures, linear, narrows_first
from hpcgnn.sar.sums import first_sum, is_constant


class APPNP(torch.nn.Module):
    """`K` steps of personalised PageRank with teleport probability `alpha` (Gasteiger et al. 2019).

    As PyTorch Geometric's `APPNP(K, alpha)`: `x <- (1 - alpha) A' x + alpha x_0`.
    """

    def __init__(self, K: int, alpha: float) -> None:
        super().__init__()
        self.K, self.alpha = K, alpha

    def forward(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        start_NF = x_NF
        for _ in range(self.K):
            x_NF = torch.add(
                normalised_sum(graph, x_NF) * (1 - self.alpha), start_NF, alpha=self.alpha
            )
        return x_NF


class SGConv(torch.nn.Module):
    """`A'^K x W^T + b` (Wu et al. 2019); arguments as PyTorch Geometric's `SGConv`.

    Powers of constant input features are computed once.
    """

    def __init__(self, in_channels: int, out_channels: int, K: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.K = in_channels, out_channels, K
        self.lin = Linear(in_channels, out_channels, bias=bias)

    def forward(self, graph: PartitionedGraph, x_NF: NodeFeatures) -> Tensor:
        if isinstance(x_NF, Tensor) and is_constant(graph, x_NF):
            powered = first_sum(graph, ("sgc", self.K), lambda: self._power(graph, x_NF))
            return linear(powered, self.lin.weight, self.lin.bias)
        if isinstance(x_NF, Tensor) and not narrows_first(
            graph, self.in_channels, self.out_channels
        ):
            return linear(self._power(graph, x_NF), self.lin.weight, self.lin.bias)
        y_NF = self._power(graph, linear(x_NF, self.lin.weight))
        return y_NF if self.lin.bias is None else y_NF + self.lin.bias

    def _power(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        for _ in range(self.K):
            x_NF = normalised_sum(graph, x_NF)
        return x_NF


class AdaptiveDepth(torch.nn.Module):
    """Every number of steps up to `K`, gated node by node (DAGNN, Liu et al. 2020).

    `out = sum_k sigmoid(<s, x_k>) x_k` with `x_k = A'^k x_0`.
    """

    def __init__(self, channels: int, K: int) -> None:
        super().__init__()
        self.K = K
        self.gate = Linear(channels, 1)

    def forward(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        out_NF = x_NF * torch.sigmoid(self.gate(x_NF))
        for _ in range(self.K):
            x_NF = normalised_sum(graph, x_NF)
            out_NF = torch.addcmul(out_NF, x_NF, torch.sigmoid(self.gate(x_NF)))
        return out_NF


class Pointwise(Linear):
    """A linear map of each node alone, called like a convolution."""

    def forward(self, graph: PartitionedGraph, x_NF: NodeFeatures) -> Tensor:  # type: ignore[override]
        return linear(x_NF, self.weight, self.bias)
