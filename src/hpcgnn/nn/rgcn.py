"""Relational graph convolution (Schlichtkrull et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_keywords, check_width
from hpcgnn.nn.linear import NodeFeatures, glorot, zero
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.products import dense_rows
from hpcgnn.sar.relational import relational_sum


class RGCNConv(torch.nn.Module):
    """`x'_i = root^T x_i + b + sum_r mean_{j in N_r(i)} W_r^T x_j`.

    Arguments, parameters and initialisation as PyTorch Geometric's `RGCNConv`; with `num_bases`,
    `W_r = sum_b comp[r, b] weight[b]`.

    Args:
        aggr: `mean` over the neighbours of each relation, or `sum` (or `add`).
        is_sorted: has no effect.
    """

    hops = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_relations: int,
        num_bases: int | None = None,
        num_blocks: None = None,
        aggr: str = "mean",
        root_weight: bool = True,
        is_sorted: bool = False,
        bias: bool = True,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, {"num_blocks": num_blocks, **keywords}, num_blocks=(None,))
        for name, width in (("in_channels", in_channels), ("out_channels", out_channels)):
            check_width(self, name, width)
        check_width(self, "num_relations", num_relations, 1)
        aggr = "sum" if aggr == "add" else aggr
        if aggr not in ("mean", "sum"):
            raise InputError("aggr must be mean or sum", value=aggr)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_relations, self.num_bases, self.aggr = num_relations, num_bases, aggr
        count = num_relations if num_bases is None else num_bases
        self.weight = torch.nn.Parameter(torch.empty(count, in_channels, out_channels))
        self.comp: torch.nn.Parameter | None = None
        if num_bases is not None:
            self.comp = torch.nn.Parameter(torch.empty(num_relations, num_bases))
        self.root: torch.nn.Parameter | None = None
        if root_weight:
            self.root = torch.nn.Parameter(torch.empty(in_channels, out_channels))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.weight, self.comp, self.root):
            if weight is not None:
                glorot(weight)
        zero(self.bias)

    def forward(self, graph: PartitionedGraph, x: NodeFeatures) -> Tensor:
        """`[n, in_channels]`, which is made dense where it is sparse, to `[n, out_channels]`."""
        check_rows(
            graph, x, who="RGCNConv", width=self.in_channels, constant=True, like=self.weight
        )
        x_NF = dense_rows(x, graph.node_ids.device)
        if graph.num_relations > self.num_relations:
            raise InputError(
                f"the graph has {graph.num_relations} relations, the layer {self.num_relations}"
            )
        y_NF = relational_sum(graph, x_NF, self._weights(), mean=self.aggr == "mean")
        if self.root is not None:
            y_NF = y_NF + x_NF @ self.root
        return y_NF if self.bias is None else y_NF + self.bias

    def _weights(self) -> Tensor:
        """One matrix per relation, in full precision: `[R, F, G]`."""
        if self.comp is None:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            return torch.einsum("rb,bio->rio", self.comp, self.weight)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, num_relations={self.num_relations}"
