"""Base classes of layers whose messages, and states of edges, are ordinary torch code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpcgnn.graph.features import NodeFeatures
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import layer_number
from hpcgnn.sar.checks import check_edge_rows, check_rows
from hpcgnn.sar.message_pass import EdgePiece, Message, MessageSettings
from hpcgnn.sar.messages import propagate, propagate_states
from hpcgnn.sar.products import dense_rows


class MessagePassing(torch.nn.Module):
    """Base of layers that compute a message per edge and reduce messages per node.

    Write `message(x_src, x_dst, edge)` with torch operations on rows that are edges. It returns
    `[e, G]`, or `(value, logit)` if `softmax` is among the reductions: a logit per edge, per head,
    or per entry of `value`, whose first dimensions it must have. Blocks of remote nodes are
    streamed and freed; messages are recomputed in backward. Parameters used in `message` get their
    gradients without being declared. Values that differ from edge to edge must be arguments.

    Args:
        aggr: `sum` (or `add`), `mean`, `max`, `min`, `var`, `std`, `softmax`, or a list; results of
            a list are concatenated.
        piece: number of edges whose messages are computed at a time.
        layer: number that distinguishes the random numbers inside `message` between layers; by
            default drawn from torch's generator.
    """

    hops = 1

    def __init__(
        self, aggr: str | Sequence[str] = "sum", piece: int = 1 << 16, layer: int | None = None
    ) -> None:
        super().__init__()
        self.aggr, self.piece, self.layer = aggr_names(aggr), piece, layer_number(layer)

    def message(
        self, x_src: Tensor, x_dst: Tensor, edge: EdgePiece
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the messages of some edges; by default the rows of their sources."""
        return x_src

    def update(self, reduced: Tensor, x: Tensor) -> Tensor:
        """Return new rows from reduced messages and old rows; by default the reduced messages."""
        return reduced

    def forward(
        self, graph: PartitionedGraph, x: NodeFeatures, edge_features: Tensor | None = None
    ) -> Tensor:
        """Return the new rows of the local nodes.

        Args:
            x: `[n, F]`; features that are sparse, or on the host, are made dense.
            edge_features: `[E, D]` in the order of `sar.messages.edge_features(graph)`, for edge
                features that need gradients; by default the graph's own are used.
        """
        check_rows(graph, x, who=type(self).__name__, constant=True)
        x_NF = dense_rows(x, graph.node_ids.device)
        if edge_features is not None:
            check_edge_rows(graph, edge_features, who=type(self).__name__)
        settings = MessageSettings(self.message, self.aggr, self.piece, self.layer, self)
        parameters = [p for p in self.parameters() if p.requires_grad]
        reduced_NG = propagate(graph, x_NF, settings, parameters, edge_features)
        return self.update(reduced_NG, x_NF)


def aggr_names(aggr: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names that `sar.reductions` has for these reductions."""
    named = (aggr,) if isinstance(aggr, str) else tuple(aggr)
    return tuple("sum" if name == "add" else name for name in named)


def edges_at_a_time(width: int) -> int:
    """Return the number of edges for which an array of this width, a row each, takes about 4 MB."""
    return max(1024, (1 << 20) // max(width, 1))


def reduced_messages(
    layer: Any,
    graph: PartitionedGraph,
    x: Tensor,
    message: Message,
    aggr: str | Sequence[str],
    *,
    targets: Tensor | None = None,
    dropout: float = 0.0,
    heads: int = 1,
) -> Tensor:
    """Return reduced messages for layers of this package with their own message: see `propagate`.

    Args:
        layer: the module, which has a number `layer`; its parameters and enclosing tensors that
            `message` uses get their gradients without being declared.
        dropout, heads: those of `edge.kept`.
    """
    piece = edges_at_a_time(x.shape[1])
    settings = MessageSettings(
        message, aggr_names(aggr), piece, layer.layer, layer, dropout=dropout, heads=heads
    )
    return propagate(graph, x, settings, [], targets=targets)


class EdgeMessagePassing(torch.nn.Module):
    """Base of layers `(x', e') = layer(graph, x, e)` with states on nodes and on edges.

    `e' = edge_update(e, x_src, x_dst, edge)` and `x' = update(aggr(e'), x)`, both in plain torch:
    linear maps, norms of single rows, residuals. Edge states lie on the rank of the edge's
    destination, in the order of `sar.messages.edge_features(graph)`, and are never sent; remote
    nodes' rows are streamed and freed. Only the inputs of a layer are kept for backward, which
    recomputes `edge_update` piece by piece and gives exact gradients of nodes, edges and
    parameters. So encode-process-decode networks on meshes (Pfaff et al. 2021) train on the whole
    graph, in memory that falls as 1 / P.

    Args:
        aggr: `sum` (or `add`), `mean`, `max`, `min`, `var`, `std`, or a list; results of a list are
            concatenated.
        piece: number of edges whose states are computed at a time; by default a few MB of them.
        layer: number that distinguishes the random numbers inside `edge_update` between layers;
            by default drawn from torch's generator.
    """

    def __init__(
        self, aggr: str | Sequence[str] = "sum", piece: int | None = None, layer: int | None = None
    ) -> None:
        super().__init__()
        self.aggr, self.piece, self.layer = aggr_names(aggr), piece, layer_number(layer)

    def edge_update(
        self, e: Tensor, x_src: Tensor, x_dst: Tensor, edge: EdgePiece
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the new states of some edges, `[k, B]`; by default the old ones.

        Return (states, messages) if something other than the new states is to be reduced, as in
        networks that add the residual after the reduced part.

        Args:
            e: `[k, D]`, the states of the edges.
            x_src, x_dst: `[k, F]`, rows of the nodes at their ends.
            edge: weight, relation and features of the edges in the graph.
        """
        return e

    def update(self, reduced: Tensor, x: Tensor) -> Tensor:
        """Return new rows of nodes from reduced states and old rows; by default the former."""
        return reduced

    def forward(self, graph: PartitionedGraph, x: NodeFeatures, e: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[n, F]` and `[E, D]` to `[n, G]` and `[E, B]`; collective.

        Raises:
            InputError: `e` does not have one row for each edge into this rank's nodes.
        """
        check_rows(graph, x, who=type(self).__name__, constant=True)
        x_NF = dense_rows(x, graph.node_ids.device)

        def message(x_src: Tensor, x_dst: Tensor, edge: EdgePiece) -> object:
            return self.edge_update(edge.state, x_src, x_dst, edge)  # type: ignore[arg-type]

        width = 2 * x_NF.shape[1] + (e.shape[-1] if isinstance(e, Tensor) and e.dim() else 0)
        piece = self.piece or edges_at_a_time(width)
        settings = MessageSettings(message, self.aggr, piece, self.layer, self)
        parameters = [p for p in self.parameters() if p.requires_grad]
        reduced_NG, state_ED = propagate_states(graph, x_NF, e, settings, parameters)
        return self.update(reduced_NG, x_NF), state_ED
