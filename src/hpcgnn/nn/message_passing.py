"""Layers whose messages are ordinary torch code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.features import NodeFeatures
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import layer_number
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.messages import EdgePiece, MessageSettings, propagate
from hpcgnn.sar.products import dense_rows


class MessagePassing(torch.nn.Module):
    """Base of layers that compute a message per edge and reduce messages per node.

    Write `message(x_src, x_dst, edge)` with torch operations: rows are edges. It returns `[e, G]`,
    or `(value, logit)` where `softmax` is among the reductions: a logit per edge, per head, or per
    entry of `value`, whose first dimensions it must have. Blocks of remote nodes are streamed
    and freed; in backward messages are computed again. Parameters used in `message` get their
    gradients without being declared. What differs from edge to edge must come as an argument.

    Args:
        aggr: `sum` (or `add`), `mean`, `max`, `min`, `var`, `std`, `softmax`, or a list; results of
            a list are concatenated.
        piece: edges whose messages exist at a time.
        layer: tells random numbers inside `message` apart between layers; drawn by `nn.numbers` if
            not given.
    """

    hops = 1

    def __init__(
        self, aggr: str | Sequence[str] = "sum", piece: int = 1 << 16, layer: int | None = None
    ) -> None:
        super().__init__()
        named = (aggr,) if isinstance(aggr, str) else tuple(aggr)
        self.aggr = tuple("sum" if name == "add" else name for name in named)
        self.piece, self.layer = piece, layer_number(layer)

    def message(
        self, x_src: Tensor, x_dst: Tensor, edge: EdgePiece
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Messages of some edges; by default the source's row."""
        return x_src

    def update(self, reduced: Tensor, x: Tensor) -> Tensor:
        """New rows from reduced messages and old rows; by default the messages."""
        return reduced

    def forward(
        self, graph: PartitionedGraph, x: NodeFeatures, edge_features: Tensor | None = None
    ) -> Tensor:
        """New rows of the local nodes.

        Args:
            x: `[n, F]`; features that are sparse, or on the host, are made dense.
            edge_features: `[E, D]` in the order of `sar.messages.edge_features(graph)`, where edge
                features need gradients; else the graph's own are used.
        """
        check_rows(graph, x, who=type(self).__name__, constant=True)
        x_NF = dense_rows(x, graph.node_ids.device)
        edges = sum(block.columns.shape[0] for block in graph.in_edges.blocks)
        if edge_features is not None and len(edge_features) != edges:
            raise InputError(
                f"{type(self).__name__}: give features for each of this part's {edges} edges",
                value=tuple(edge_features.shape),
            )
        settings = MessageSettings(self.message, self.aggr, self.piece, self.layer, self)
        parameters = [p for p in self.parameters() if p.requires_grad]
        reduced_NG = propagate(graph, x_NF, settings, parameters, edge_features)
        return self.update(reduced_NG, x_NF)
