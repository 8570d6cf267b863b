"""Graph convolution (Kipf & Welling 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph import PartitionedGraph
from hpcgnn.nn.keywords import check_keywords
from hpcgnn.nn.linear import Linear, NodeFeatures, narrows_first, zero
from hpcgnn.sar.rows import check_rows
from hpcgnn.sar.sums import first_sum, in_degrees, is_constant, neighbour_sum


class GCNConv(torch.nn.Module):
    """`x' = D^-1/2 (A + I) D^-1/2 x W^T + b`; arguments as PyTorch Geometric's `GCNConv`.

    A node that has a self-loop gets no second one. Degrees count weighted in-edges.

    Args:
        cached: has no effect: the normalisation of a graph is computed once and kept.
        add_self_loops: None: as `normalize`.
    """

    hops = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: bool | None = None,
        normalize: bool = True,
        bias: bool = True,
        **keywords: object,
    ) -> None:
        super().__init__()
        check_keywords(self, keywords, aggr=("add", "sum"))
        if add_self_loops and not normalize:
            raise InputError("GCNConv: add_self_loops needs normalize; leave one of them out")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.improved, self.normalize = improved, normalize
        self.add_self_loops = normalize if add_self_loops is None else add_self_loops
        self.lin = Linear(in_channels, out_channels, bias=False, weight_initializer="glorot")
        self.bias = torch.nn.Parameter(torch.zeros(out_channels)) if bias else None

    def reset_parameters(self) -> None:
        self.lin.reset_parameters()
        zero(self.bias)

    def forward(self, graph: PartitionedGraph, x_NF: NodeFeatures) -> Tensor:
        check_rows(graph, x_NF, who="GCNConv", width=self.in_channels, constant=True)
        if isinstance(x_NF, Tensor) and is_constant(graph, x_NF):
            y_NF = self.lin(self._first_sum(graph, x_NF))
        elif isinstance(x_NF, Tensor) and not narrows_first(
            graph, self.in_channels, self.out_channels
        ):
            y_NF = self.lin(self._propagate(graph, x_NF))
        else:
            y_NF = self._propagate(graph, self.lin(x_NF))
        return y_NF if self.bias is None else y_NF.add_(self.bias)

    def _first_sum(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        key = ("gcn", self.improved, self.add_self_loops, self.normalize)
        return first_sum(graph, key, lambda: self._propagate(graph, x_NF))

    def _propagate(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        if not self.normalize:
            return neighbour_sum(graph, x_NF)
        loop = 2.0 if self.improved else 1.0
        return normalised_sum(graph, x_NF, loop if self.add_self_loops else None)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


def normalised_sum(graph: PartitionedGraph, x_NF: Tensor, loop: float | None = 1.0) -> Tensor:
    """`D^-1/2 (A + loop I) D^-1/2 x`, see `normalisation`; without loops where `loop` is None."""
    scale_N1, missing_N1 = normalisation(graph, loop)
    scaled_NF = x_NF * scale_N1.to(x_NF.dtype)
    sum_NF = neighbour_sum(graph, scaled_NF)
    if missing_N1 is not None:
        sum_NF.addcmul_(scaled_NF, missing_N1.to(x_NF.dtype))
    return sum_NF.mul_(scale_N1.to(x_NF.dtype))


def normalisation(graph: PartitionedGraph, loop: float | None) -> tuple[Tensor, Tensor | None]:
    """`degree^-1/2` and the loop weight missing at each node, both `[n, 1]` and kept.

    With `loop` every node without a self-loop gets one of that weight, and several parallel loops
    count as the last of them, as in PyTorch Geometric.
    """
    key = ("normalisation", loop)
    found, whole = graph.cache.get(key), graph.cache.get("whole")
    if found is None and isinstance(whole, tuple):
        scale_N1, missing_N1 = normalisation(whole[0], loop)
        rows = whole[1]
        found = scale_N1[rows], None if missing_N1 is None else missing_N1[rows]
        graph.cache[key] = found
    if found is None:
        degree_N = in_degrees(graph, weighted=True)
        missing_N = None if loop is None else _missing_loops(graph, loop)
        if missing_N is not None:
            degree_N = degree_N + missing_N
        scale_N = torch.where(degree_N > 0, degree_N.clamp(min=1e-38).rsqrt(), 0.0)
        found = scale_N[:, None], None if missing_N is None else missing_N[:, None]
        graph.cache[key] = found
    return found  # type: ignore[return-value]


def _missing_loops(graph: PartitionedGraph, loop: float) -> Tensor:
    block = graph.in_edges.blocks[graph.in_edges.rank]
    counts = block.end - block.begin
    rows = torch.repeat_interleave(torch.arange(block.num_rows, device=counts.device), counts)
    edges = torch.nonzero(block.columns == rows).flatten()
    weight = torch.ones(len(edges), device=counts.device)
    if block.weight is not None:
        weight = block.weight[edges]
    rows = rows[edges]
    present = torch.zeros(block.num_rows, device=counts.device).index_add_(0, rows, weight)
    wanted = torch.full((block.num_rows,), loop, device=counts.device)
    last = torch.ones(len(rows), dtype=torch.bool, device=counts.device)  # rows ascend
    last[:-1] = rows[1:] != rows[:-1]
    wanted[rows[last]] = weight[last]
    return wanted - present
