"""Attention by inner products (Shi et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords, check_probability, check_width, layer_number
from hpcgnn.nn.linear import Linear, NodeFeatures
from hpcgnn.nn.message_passing import reduced_messages
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.message_pass import EdgePiece


class TransformerConv(torch.nn.Module):
    """The attention layer of Shi et al. (2021), as PyTorch Geometric's `TransformerConv`.

    Arguments, parameters and initialisation are the same. Keys and values of boundary nodes are
    sent; queries stay on their rank.

    Args:
        heads: number of attention heads; with `concat` their outputs are concatenated, otherwise
            averaged.
        beta: whether a gate weighs each node's own row against its neighbours' part; needs
            `root_weight`.
        dropout: probability of dropping an attention weight while training.
        edge_dim: width of the graph's edge features, if they are added to keys and values.
        root_weight: whether to add a linear map of each node's own row to the output.
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
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
        layer: int | None = None,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, keywords, aggr=("add", "sum"))
        check_width(self, "heads", heads, 1)
        check_probability(self, dropout)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.heads, self.concat, self.beta = heads, concat, beta and root_weight
        self.dropout, self.edge_dim, self.root_weight = dropout, edge_dim, root_weight
        width = heads * out_channels
        self.lin_key = Linear(in_channels, width, bias=bias)
        self.lin_query = Linear(in_channels, width, bias=bias)
        self.lin_value = Linear(in_channels, width, bias=bias)
        self.lin_edge = None if edge_dim is None else Linear(edge_dim, width, bias=False)
        out = width if concat else out_channels
        self.lin_skip = Linear(in_channels, out, bias=bias)
        self.lin_beta = Linear(3 * out, 1, bias=False) if self.beta else None
        self.layer = layer_number(layer)

    def reset_parameters(self) -> None:
        for lin in (
            self.lin_key,
            self.lin_query,
            self.lin_value,
            self.lin_edge,
            self.lin_skip,
            self.lin_beta,
        ):
            if lin is not None:
                lin.reset_parameters()

    @property
    def output_bias(self) -> Tensor | None:
        """The bias that is added to every node's output."""
        return self.lin_skip.bias if self.root_weight and not self.beta else None

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """Map `[n, F]` to `[n, H * C]`, or to `[n, C]` without `concat`."""
        who, like = type(self).__name__, self.lin_key.weight
        check_rows(graph, x, who=who, width=self.in_channels, constant=True, like=like)
        check_edges(graph, self.edge_dim, who=who)
        out_NK = reduced_messages(
            self,
            graph,
            torch.cat([self.lin_key(x), self.lin_value(x)], dim=1),
            self._message,
            "softmax",
            targets=self.lin_query(x) / math.sqrt(self.out_channels),
            dropout=self.dropout if self.training else 0.0,
            heads=self.heads,
        )
        if not self.concat:
            out_NK = out_NK.view(-1, self.heads, self.out_channels).mean(dim=1)
        if not self.root_weight:
            return out_NK
        own_NK = self.lin_skip(x)
        if self.lin_beta is None:
            return out_NK + own_NK
        own_NK = own_NK.to(out_NK.dtype)
        gate_N1 = torch.sigmoid(self.lin_beta(torch.cat([out_NK, own_NK, out_NK - own_NK], dim=1)))
        return gate_N1 * own_NK + (1 - gate_N1) * out_NK

    def _message(self, x_src: Tensor, query: Tensor, edge: EdgePiece) -> tuple[Tensor, Tensor]:
        key, value = x_src.chunk(2, dim=1)
        if self.lin_edge is not None and edge.features is not None:
            own = self.lin_edge(edge.features.to(key.dtype))
            key, value = key + own, value + own
        shape = (len(key), self.heads, self.out_channels)
        value = value.reshape(shape)
        if edge.kept is not None:
            value = value * edge.kept[:, :, None]
        return value, (query * key).view(shape).sum(dim=2)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"
