"""Graph attention: GAT (Veličković et al. 2018), GATv2 (Brody et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords, check_probability, check_width, layer_number
from hpcgnn.nn.linear import Linear, NodeFeatures, glorot, zero
from hpcgnn.sar.attention import AttentionSettings, head_mean
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.gat import attention
from hpcgnn.sar.gat_heads import averaged_attention, one_at_a_time
from hpcgnn.sar.gatv2 import gatv2
from hpcgnn.sar.rectifier import ReluDropout


class AttentionConv(torch.nn.Module):
    """Base of attention layers: concatenated or averaged heads, edge features, bias, residual.

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
        """Return the bias, if it is added before heads are averaged."""
        return self.bias if self.concat else None

    def _output(
        self, graph: PartitionedGraph, out_NK: Tensor, x: NodeFeatures, *, averaged: bool = False
    ) -> Tensor:
        """Return the output with heads averaged, if still due, and with bias and residual."""
        if not self.concat:
            if not averaged:
                out_NK = head_mean(graph, out_NK, self.heads)
            out_NK = out_NK if self.bias is None else out_NK + self.bias.to(out_NK.dtype)
        return out_NK if self.res is None else out_NK + self.res(x)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


def glorot_linear(in_channels: int, out_channels: int, *, bias: bool = False) -> Linear:
    """Return a linear layer with the weights of `glorot`."""
    return Linear(in_channels, out_channels, bias=bias, weight_initializer="glorot")


class GATConv(AttentionConv):
    """The attention layer of Veličković et al. (2018), as PyTorch Geometric's `GATConv`.

    Arguments, parameters and initialisation are the same.

    Args:
        heads: number of attention heads; with `concat` their outputs are concatenated, otherwise
            averaged.
        dropout: probability of dropping an attention weight while training.
        edge_dim: width of the graph's edge features, if the scores use them.
        fill_value: `mean`: an added self-loop has the mean features of the node's in-edges.
        residual: whether to add a linear map of each node's own row to the output.
        layer: number that distinguishes the dropout masks of one model; by default drawn from
            torch's generator.
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
        """Map `[n, F]` to `[n, H * C]`, or to `[n, C]` without `concat`.

        Args:
            then: `Dropout.rectifier` of a ReLU and dropout that follow the layer: applied here,
                they save an array for backward. With `concat` and without `residual` only.
        """
        self._check(graph, x, self.lin.weight)
        if then is not None and (not self.concat or self.res is not None):
            raise InputError("GATConv: `then` needs concat=True and residual=False")
        weights = (self.lin.weight, self.att_src[0], self.att_dst[0], self._edge())
        if not self.concat and one_at_a_time(
            graph.mode, heads=self.heads, channels=self.out_channels, inputs=self.in_channels
        ):
            out_NC = averaged_attention(graph, x, *weights, self._settings())
            return self._output(graph, out_NC, x, averaged=True)
        out_NK = attention(graph, x, *weights, self._inner_bias(), self._settings(), then)
        return self._output(graph, out_NK, x)

    def _edge(self) -> Tensor | None:
        """Return a vector per head, `[H, D]`: scores are linear in edge features."""
        if self.lin_edge is None or self.att_edge is None:
            return None
        weight_HCD = self.lin_edge.weight.view(self.heads, self.out_channels, -1)
        with torch.autocast(weight_HCD.device.type, enabled=False):
            return torch.einsum("hcd,hc->hd", weight_HCD, self.att_edge[0])


class GATv2Conv(AttentionConv):
    """The attention layer of Brody et al. (2022), as PyTorch Geometric's `GATv2Conv`.

    Arguments, parameters and initialisation are the same.

    Args:
        edge_dim: width of the graph's edge features, if the scores use them.
        share_weights: whether sources and destinations use one linear map.
        fill_value: `mean`: an added self-loop has the mean features of the node's in-edges.
        residual: whether to add a linear map of each node's own row to the output.
        layer: number that distinguishes the dropout masks of one model; by default drawn from
            torch's generator.
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
        """Map `[n, F]` to `[n, H * C]`, or to `[n, C]` without `concat`."""
        self._check(graph, x, self.lin_l.weight)
        left_NK = self.lin_l(x)
        right_NK = left_NK if self.lin_r is self.lin_l else self.lin_r(x)
        edge_DK = None if self.lin_edge is None else self.lin_edge.weight.t()
        bias_K, settings = self._inner_bias(), self._settings()
        out_NK = gatv2(graph, left_NK, right_NK, self.att[0], edge_DK, bias_K, settings)
        return self._output(graph, out_NK, x)
