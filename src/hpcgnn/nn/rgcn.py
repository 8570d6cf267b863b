"""Relational graph convolution (Schlichtkrull et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph import PartitionedGraph
from hpcgnn.nn.linear import glorot
from hpcgnn.sar.messages import EdgePiece, MessageSettings, propagate


class RGCNConv(torch.nn.Module):
    """`x'_i = root^T x_i + b + sum_r mean_{j in N_r(i)} W_r^T x_j`.

    Arguments, parameters and initialisation as PyTorch Geometric's `RGCNConv`; with `num_bases`,
    `W_r = sum_b comp[r, b] weight[b]`.

    Args:
        aggr: `mean` over the neighbours of each relation, or `sum`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_relations: int,
        num_bases: int | None = None,
        aggr: str = "mean",
        root_weight: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if aggr not in ("mean", "sum"):
            raise InputError("aggr must be mean or sum", value=aggr)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_relations, self.num_bases, self.aggr = num_relations, num_bases, aggr
        count = num_relations if num_bases is None else num_bases
        self.weight = torch.nn.Parameter(torch.empty(count, in_channels, out_channels))
        glorot(self.weight)
        self.comp: torch.nn.Parameter | None = None
        if num_bases is not None:
            self.comp = torch.nn.Parameter(torch.empty(num_relations, num_bases))
            glorot(self.comp)
        self.root: torch.nn.Parameter | None = None
        if root_weight:
            self.root = torch.nn.Parameter(torch.empty(in_channels, out_channels))
            glorot(self.root)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        if graph.num_relations > self.num_relations:
            raise InputError(
                f"the graph has {graph.num_relations} relations, the layer {self.num_relations}"
            )
        factor_E1 = relation_factors(graph, self.aggr == "mean")
        settings = MessageSettings(self._message, ("sum",))
        parameters = [self.weight] if self.comp is None else [self.weight, self.comp]
        y_NF = propagate(graph, x_NF, settings, parameters, factor_E1.to(x_NF.dtype))
        if self.root is not None:
            y_NF = y_NF + x_NF @ self.root
        return y_NF if self.bias is None else y_NF + self.bias

    def _message(self, x_src: Tensor, x_dst: Tensor, edge: EdgePiece) -> Tensor:
        """Edges sorted by relation, so that each weight is used once per piece."""
        if edge.relation is None or edge.features is None:
            raise InputError("the graph has no relations; convert it from triples")
        order = torch.argsort(edge.relation, stable=True)
        counts = torch.bincount(edge.relation, minlength=self.num_relations).tolist()
        weight: Tensor = self.weight
        if self.comp is not None:
            weight = torch.einsum("rb,bio->rio", self.comp, weight)
        products = [
            rows @ weight[relation]
            for relation, rows in enumerate(x_src[order].split(counts))
            if len(rows)
        ]
        sorted_rows = torch.cat(products) if products else x_src @ weight[0]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return sorted_rows[inverse] * edge.features

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, num_relations={self.num_relations}"


def relation_factors(graph: PartitionedGraph, mean: bool) -> Tensor:
    """Per edge 1, or 1 / number of its destination's in-edges of its relation: `[E, 1]`; kept."""
    key = ("relation factors", mean)
    found = graph.cache.get(key)
    if isinstance(found, Tensor):
        return found
    keys = []
    for block in graph.in_edges.blocks:
        if block.relation is None:
            raise InputError("the graph has no relations; convert it from triples")
        counts = block.end - block.begin
        rows = torch.arange(len(counts), device=counts.device)
        local = rows if block.rows is None else block.rows.long()
        keys.append(torch.repeat_interleave(local, counts) * graph.num_relations + block.relation)
    factor_E = torch.ones(sum(map(len, keys)), device=graph.node_ids.device)
    if mean and len(factor_E):
        _, group_E, size = torch.unique(torch.cat(keys), return_inverse=True, return_counts=True)
        factor_E = 1 / size[group_E].float()
    graph.cache[key] = factor_E[:, None]
    return factor_E[:, None]
