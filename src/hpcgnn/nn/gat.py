"""Graph attention (Veličković et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords, check_probability, check_width, layer_number
from hpcgnn.nn.linear import Linear, NodeFeatures, glorot, zero
from hpcgnn.sar.attention import AttentionSettings
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.gat import attention


class GATConv(torch.nn.Module):
    """Arguments, parameters and initialisation as PyTorch Geometric's `GATConv`.

    Args:
        heads: attention heads; with `concat` their outputs lie side by side, else averaged.
        dropout: probability of dropping an attention weight while training.
        edge_dim: width of the graph's edge features, if they take part in the scores.
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
        self.lin = Linear(
            in_channels, heads * out_channels, bias=False, weight_initializer="glorot"
        )
        self.att_src = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        self.lin_edge, self.att_edge = None, None
        if edge_dim is not None:
            self.lin_edge = Linear(
                edge_dim, heads * out_channels, bias=False, weight_initializer="glorot"
            )
            self.att_edge = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        self._reset_attention()
        width = heads * out_channels if concat else out_channels
        self.bias = torch.nn.Parameter(torch.zeros(width)) if bias else None
        self.res = None
        if residual:
            self.res = Linear(in_channels, width, bias=False, weight_initializer="glorot")
        self.layer = layer_number(layer)

    def reset_parameters(self) -> None:
        for lin in (self.lin, self.lin_edge, self.res):
            if lin is not None:
                lin.reset_parameters()
        self._reset_attention()
        zero(self.bias)

    def _reset_attention(self) -> None:
        for weight in (self.att_edge, self.att_src, self.att_dst):
            if weight is not None:
                glorot(weight)

    def forward(self, graph: PartitionedGraph, x_NF: NodeFeatures) -> Tensor:
        """`[n, F]` to `[n, H * C]`, or `[n, C]` without `concat`."""
        check_rows(
            graph, x_NF, who="GATConv", width=self.in_channels, constant=True, like=self.lin.weight
        )
        check_edges(graph, self.edge_dim, who="GATConv")
        settings = AttentionSettings(
            heads=self.heads,
            slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            layer=self.layer,
            self_loops=self.add_self_loops,
        )
        out_NK = attention(
            graph, x_NF, self.lin.weight, self.att_src[0], self.att_dst[0], self._edge(),
            self.bias if self.concat else None, settings,
        )  # fmt: skip
        if not self.concat:
            out_NK = out_NK.view(-1, self.heads, self.out_channels).mean(dim=1)
            out_NK = out_NK if self.bias is None else out_NK + self.bias.to(out_NK.dtype)
        return out_NK if self.res is None else out_NK + self.res(x_NF)

    def _edge(self) -> Tensor | None:
        """Scores of edge features are linear in them: one vector per head, `[H, D]`."""
        if self.lin_edge is None or self.att_edge is None:
            return None
        weight_HCD = self.lin_edge.weight.view(self.heads, self.out_channels, -1)
        return torch.einsum("hcd,hc->hd", weight_HCD, self.att_edge[0])

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"
