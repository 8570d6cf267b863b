"""What `GATConv` and `GATv2Conv` share."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords, check_probability, check_width, layer_number
from hpcgnn.nn.linear import Linear, NodeFeatures
from hpcgnn.sar.attention import AttentionSettings
from hpcgnn.sar.checks import check_edges, check_rows


class AttentionConv(torch.nn.Module):
    """Heads that lie side by side or are averaged, edge features, a bias and a residual.

    A subclass makes its weights between the two halves, `__init__` and `_make_output`: weights are
    drawn in this order.
    """

    keeps_output = True  # for backward: nothing may overwrite it

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        heads: int,
        concat: bool,
        negative_slope: float,
        dropout: float,
        add_self_loops: bool,
        edge_dim: int | None,
        fill_value: str,
        keywords: dict[str, object],
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
        self.lin_edge: Linear | None = None

    def _make_output(self, *, bias: bool, residual: bool, layer: int | None) -> None:
        width = self.heads * self.out_channels if self.concat else self.out_channels
        self.bias = torch.nn.Parameter(torch.zeros(width)) if bias else None
        self.res: Linear | None = None
        if residual:
            self.res = glorot_linear(self.in_channels, width)
        self.layer = layer_number(layer)

    def _check(self, graph: PartitionedGraph, x: NodeFeatures, like: Tensor) -> None:
        who = type(self).__name__
        check_rows(graph, x, who=who, width=self.in_channels, constant=True, like=like)
        check_edges(graph, self.edge_dim, who=who)

    def _settings(self) -> AttentionSettings:
        return AttentionSettings(
            heads=self.heads,
            slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            layer=self.layer,
            self_loops=self.add_self_loops,
        )

    def _inner_bias(self) -> Tensor | None:
        """The bias, if it is added before heads are averaged."""
        return self.bias if self.concat else None

    def _output(self, out_NK: Tensor, x: NodeFeatures, *, averaged: bool = False) -> Tensor:
        """Heads averaged where asked for and not done, bias and residual added."""
        if not self.concat:
            if not averaged:
                out_NK = out_NK.view(-1, self.heads, self.out_channels).mean(dim=1)
            out_NK = out_NK if self.bias is None else out_NK + self.bias.to(out_NK.dtype)
        return out_NK if self.res is None else out_NK + self.res(x)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


def glorot_linear(in_channels: int, out_channels: int, *, bias: bool = False) -> Linear:
    return Linear(in_channels, out_channels, bias=bias, weight_initializer="glorot")
