"""Graph attention (Veličković et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.attention import AttentionConv, glorot_linear
from hpcgnn.nn.linear import NodeFeatures, glorot, zero
from hpcgnn.sar.gat import attention
from hpcgnn.sar.gat_heads import averaged_attention, one_at_a_time
from hpcgnn.sar.rectifier import ReluDropout


class GATConv(AttentionConv):
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
        self.lin = glorot_linear(in_channels, heads * out_channels)
        self.att_src = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_edge: torch.nn.Parameter | None = None
        if edge_dim is not None:
            self.lin_edge = glorot_linear(edge_dim, heads * out_channels)
            self.att_edge = torch.nn.Parameter(torch.empty(1, heads, out_channels))
        self._reset_attention()
        self._make_output(bias=bias, residual=residual, layer=layer)

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

    def forward(
        self, graph: PartitionedGraph, x: NodeFeatures, then: ReluDropout | None = None
    ) -> Tensor:
        """`[n, F]` to `[n, H * C]`, or `[n, C]` without `concat`.

        Args:
            then: `Dropout.rectifier` of a ReLU and dropout that follow the layer: done here, they
                save an array for backward. With `concat` and without `residual` only.
        """
        self._check(graph, x, self.lin.weight)
        if then is not None and (not self.concat or self.res is not None):
            raise InputError("GATConv: `then` needs concat=True and residual=False")
        weights = (self.lin.weight, self.att_src[0], self.att_dst[0], self._edge())
        if not self.concat and one_at_a_time(
            graph.mode, heads=self.heads, channels=self.out_channels, inputs=self.in_channels
        ):
            out_NC = averaged_attention(graph, x, *weights, self._settings())
            return self._output(out_NC, x, averaged=True)
        out_NK = attention(graph, x, *weights, self._inner_bias(), self._settings(), then)
        return self._output(out_NK, x)

    def _edge(self) -> Tensor | None:
        """Scores of edge features are linear in them: one vector per head, `[H, D]`."""
        if self.lin_edge is None or self.att_edge is None:
            return None
        weight_HCD = self.lin_edge.weight.view(self.heads, self.out_channels, -1)
        with torch.autocast(weight_HCD.device.type, enabled=False):
            return torch.einsum("hcd,hc->hd", weight_HCD, self.att_edge[0])
