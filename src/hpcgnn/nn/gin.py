"""Graph isomorphism network (Xu et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph import PartitionedGraph
from hpcgnn.sar.sums import neighbour_sum


class GINConv(torch.nn.Module):
    """`x'_i = nn((1 + eps) x_i + sum_j x_j)`; arguments as PyTorch Geometric's `GINConv`."""

    def __init__(self, nn: torch.nn.Module, eps: float = 0.0, train_eps: bool = False) -> None:
        super().__init__()
        self.nn = nn
        self.eps: Tensor
        if train_eps:
            self.eps = torch.nn.Parameter(torch.tensor([eps]))
        else:
            self.register_buffer("eps", torch.tensor([eps]))

    def forward(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        sum_NF = neighbour_sum(graph, x_NF, weighted=False)
        result: Tensor = self.nn(sum_NF + (1 + self.eps) * x_NF)
        return result
