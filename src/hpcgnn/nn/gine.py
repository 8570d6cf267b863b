"""Graph isomorphism network with edge features (Hu et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.gin import GINConv
from hpcgnn.nn.linear import Linear, NodeFeatures
from hpcgnn.nn.message_passing import reduced_messages
from hpcgnn.sar.checks import check_edges, check_rows
from hpcgnn.sar.message_pass import EdgePiece
from hpcgnn.sar.products import dense_rows


class GINEConv(GINConv):
    """`x'_i = nn((1 + eps) x_i + sum_j relu(x_j + e_ji))`; as PyTorch Geometric's `GINEConv`.

    Args:
        nn: begins with a linear map where `edge_dim` is given, which says how wide nodes are.
        edge_dim: width of the graph's edge features, which a linear map makes as wide as nodes';
            None: they are as wide already.
        aggr: `add` (or `sum`), `mean`, `max` or `min`.
    """

    hops = 1

    def __init__(
        self,
        nn: torch.nn.Module,
        eps: float = 0.0,
        train_eps: bool = False,
        edge_dim: int | None = None,
        **keywords: object,
    ) -> None:
        super().__init__(nn, eps, train_eps, **keywords)
        self.edge_dim = edge_dim
        self.lin = None if edge_dim is None else Linear(edge_dim, _width(nn))
        self.layer = 0

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.lin is not None:
            self.lin.reset_parameters()

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """`[n, F]`, which is made dense where it is sparse, to what `nn` makes of it."""
        check_rows(graph, x, who="GINEConv", constant=True)
        wanted = x.shape[1] if self.edge_dim is None else self.edge_dim
        check_edges(graph, wanted, who="GINEConv")
        x_NF = dense_rows(x, graph.node_ids.device)
        sum_NF = reduced_messages(self, graph, x_NF, self._message, self.aggr)
        result: Tensor = self.nn(sum_NF + (1 + self.eps) * x_NF)
        return result

    def _message(self, x_src: Tensor, x_dst: Tensor, edge: EdgePiece) -> Tensor:
        features = x_src.new_zeros(1) if edge.features is None else edge.features.to(x_src.dtype)
        return torch.relu(x_src + (features if self.lin is None else self.lin(features)))


def _width(module: torch.nn.Module) -> int:
    """Of what a network reads, which its first module says."""
    first = module[0] if isinstance(module, torch.nn.Sequential) and len(module) else module
    for name in ("in_features", "in_channels"):
        if isinstance(getattr(first, name, None), int):
            return int(getattr(first, name))
    raise InputError("GINEConv: edge_dim needs a network that begins with a linear map")
