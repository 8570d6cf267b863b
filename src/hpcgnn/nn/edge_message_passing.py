"""Layers that renew states of edges as well as of nodes (Battaglia et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcgnn.graph.features import NodeFeatures
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import layer_number
from hpcgnn.nn.message_passing import aggr_names, edges_at_a_time
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.message_pass import EdgePiece, MessageSettings
from hpcgnn.sar.messages import propagate_states
from hpcgnn.sar.products import dense_rows


class EdgeMessagePassing(torch.nn.Module):
    """Base of layers `(x', e') = layer(graph, x, e)` with states on nodes and on edges.

    `e' = edge_update(e, x_src, x_dst, edge)` and `x' = update(aggr(e'), x)`, both in plain torch:
    linear maps, norms of single rows, residuals. Edge states lie on the rank of the edge's
    destination, in the order of `sar.messages.edge_features(graph)`, and are never sent; remote
    nodes' rows are streamed and freed. Of a layer its inputs alone are kept for backward: what
    `edge_update` computes on the way is computed again, piece by piece, and gives exact gradients
    to nodes, edges and parameters. So encode-process-decode networks on meshes (Pfaff et al. 2021)
    train on the whole graph, in memory that falls as 1 / P.

    Args:
        aggr: `sum` (or `add`), `mean`, `max`, `min`, `var`, `std`, or a list; results of a list are
            concatenated.
        piece: edges whose states are computed at a time; by default as many as take a few MB.
        layer: tells random numbers inside `edge_update` apart between layers; drawn by
            `nn.numbers` if not given.
    """

    def __init__(
        self, aggr: str | Sequence[str] = "sum", piece: int | None = None, layer: int | None = None
    ) -> None:
        super().__init__()
        self.aggr, self.piece, self.layer = aggr_names(aggr), piece, layer_number(layer)

    def edge_update(
        self, e: Tensor, x_src: Tensor, x_dst: Tensor, edge: EdgePiece
    ) -> Tensor | tuple[Tensor, Tensor]:
        """New states of some edges, `[k, B]`; by default the old ones.

        Or (states, messages) where something else than the new states is reduced, as in networks
        that add their residual after it.

        Args:
            e: `[k, D]`, their states.
            x_src, x_dst: `[k, F]`, rows of the nodes at their ends.
            edge: weight, relation and features that the graph has for them.
        """
        return e

    def update(self, reduced: Tensor, x: Tensor) -> Tensor:
        """New rows of nodes from reduced states and old rows; by default the former."""
        return reduced

    def forward(self, graph: PartitionedGraph, x: NodeFeatures, e: Tensor) -> tuple[Tensor, Tensor]:
        """`[n, F]` and `[E, D]` to `[n, G]` and `[E, B]`; collective.

        Raises:
            InputError: `e` has no row for each edge into this rank's nodes.
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
