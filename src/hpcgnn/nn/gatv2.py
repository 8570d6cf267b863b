"""Dynamic graph attention (Brody et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords, check_probability, check_width, layer_number
from hpcgnn.nn.linear import Linear, NodeFeatures, glorot, zero
from hpcgnn.sar.attention import AttentionSettings
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.gatv2 import gatv2


class GATv2Conv(torch.nn.Module):
    """Arguments, parameters and initialisation as PyTorch Geometric's `GATv2Conv`.

    Args:
        edge_dim: width of the graph's edge features, if they take part in the scores.
        share_weights: sources and destinations use one linear map.
        fill_value: `mean`: a self-loop that is added has the mean features of the node's in-edges.
        residual: a linear map of each node's own row is added to the output.
        layer: tells the dropout masks of one model apart; drawn by `nn.numbers` if not given.
    """

    hops = 1
    keeps_output = True  # for backward: nothing may overwrite it

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
        super().__init__()
        fixed = {"fill_value": fill_value, **keywords}
        check_keywords(self, fixed, fill_value=("mean",), aggr=("add", "sum"))
        check_width(self, "heads", heads, 1)
        check_probability(self, dropout)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.heads, self.concat = heads, concat
        self.negative_slope, self.dropout = negative_slope, dropout
        self.add_self_loops, self.edge_dim = add_self_loops, edge_dim
        width = heads * out_channels
        self.lin_l = Linear(in_channels, width, bias=bias, weight_initializer="glorot")
        self.lin_r = self.lin_l
        if not share_weights:
            self.lin_r = Linear(in_channels, width, bias=bias, weight_initializer="glorot")
        self.lin_edge: Linear | None = None
        if edge_dim is not None:
            self.lin_edge = Linear(edge_dim, width, bias=False, weight_initializer="glorot")
        self.att = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        glorot(self.att)
        self.bias = (
            torch.nn.Parameter(torch.zeros(width if concat else out_channels)) if bias else None
        )
        self.res: Linear | None = None
        if residual:
            own = width if concat else out_channels
            self.res = Linear(in_channels, own, bias=False, weight_initializer="glorot")
        self.layer = layer_number(layer)

    def reset_parameters(self) -> None:
        self.lin_l.reset_parameters()
        if self.lin_r is not self.lin_l:
            self.lin_r.reset_parameters()
        for lin in (self.lin_edge, self.res):
            if lin is not None:
                lin.reset_parameters()
        glorot(self.att)
        zero(self.bias)

    def forward(self, graph: PartitionedGraph, x_NF: NodeFeatures) -> Tensor:
        """`[n, F]` to `[n, H * C]`, or `[n, C]` without `concat`."""
        check_rows(
            graph,
            x_NF,
            who="GATv2Conv",
            width=self.in_channels,
            constant=True,
            like=self.lin_l.weight,
        )
        check_edges(graph, self.edge_dim, who="GATv2Conv")
        settings = AttentionSettings(
            heads=self.heads,
            slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            layer=self.layer,
            self_loops=self.add_self_loops,
        )
        left_NK = self.lin_l(x_NF)
        right_NK = left_NK if self.lin_r is self.lin_l else self.lin_r(x_NF)
        edge_DK = None if self.lin_edge is None else self.lin_edge.weight.t()
        bias_K = self.bias if self.concat else None
        out_NK = gatv2(graph, left_NK, right_NK, self.att[0], edge_DK, bias_K, settings)
        if not self.concat:
            out_NK = out_NK.view(-1, self.heads, self.out_channels).mean(dim=1)
            out_NK = out_NK if self.bias is None else out_NK + self.bias.to(out_NK.dtype)
        return out_NK if self.res is None else out_NK + self.res(x_NF)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"
