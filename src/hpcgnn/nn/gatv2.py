"""Dynamic graph attention (Brody et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.attention import AttentionConv, glorot_linear
from hpcgnn.nn.linear import NodeFeatures, glorot, zero
from hpcgnn.sar.gatv2 import gatv2


class GATv2Conv(AttentionConv):
    """Arguments, parameters and initialisation as PyTorch Geometric's `GATv2Conv`.

    Args:
        edge_dim: width of the graph's edge features, if they take part in the scores.
        share_weights: sources and destinations use one linear map.
        fill_value: `mean`: a self-loop that is added has the mean features of the node's in-edges.
        residual: a linear map of each node's own row is added to the output.
        layer: tells the dropout masks of one model apart; drawn by `nn.numbers` if not given.
    """

    hops = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: str = "mean",
        bias: bool = True,
        share_weights: bool = False,
        residual: bool = False,
        layer: int | None = None,
        **keywords: object,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            heads=heads,
            concat=concat,
            negative_slope=negative_slope,
            dropout=dropout,
            add_self_loops=add_self_loops,
            edge_dim=edge_dim,
            fill_value=fill_value,
            keywords=keywords,
        )
        width = heads * out_channels
        self.lin_l = glorot_linear(in_channels, width, bias=bias)
        self.lin_r = self.lin_l
        if not share_weights:
            self.lin_r = glorot_linear(in_channels, width, bias=bias)
        if edge_dim is not None:
            self.lin_edge = glorot_linear(edge_dim, width)
        self.att = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        glorot(self.att)
        self._make_output(bias=bias, residual=residual, layer=layer)

    def reset_parameters(self) -> None:
        self.lin_l.reset_parameters()
        if self.lin_r is not self.lin_l:
            self.lin_r.reset_parameters()
        for lin in (self.lin_edge, self.res):
            if lin is not None:
                lin.reset_parameters()
        glorot(self.att)
        zero(self.bias)

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """`[n, F]` to `[n, H * C]`, or `[n, C]` without `concat`."""
        self._check(graph, x, self.lin_l.weight)
        left_NK = self.lin_l(x)
        right_NK = left_NK if self.lin_r is self.lin_l else self.lin_r(x)
        edge_DK = None if self.lin_edge is None else self.lin_edge.weight.t()
        bias_K, settings = self._inner_bias(), self._settings()
        out_NK = gatv2(graph, left_NK, right_NK, self.att[0], edge_DK, bias_K, settings)
        return self._output(out_NK, x)
