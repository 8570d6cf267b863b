"""Graph convolution (Kipf & Welling 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.nn.dropout import rectified
from hpcgnn.nn.layer import check_keywords
from hpcgnn.nn.linear import Linear, NodeFeatures, narrows_first, zero
from hpcgnn.sar.aggregation import (
    first_sum,
    is_constant,
    linear_sum,
    multiply,
    neighbour_sum,
    weight_sums,
)
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.rectifier import ReluDropout

_CACHED = 1 << 18  # bytes of rows that stay in a processor's cache from one pass to the next
_MOST = 1e-6 * torch.finfo(torch.float32).max


@dataclass(frozen=True)
class _FirstGCN:
    improved: bool
    add_self_loops: bool
    normalize: bool


class GCNConv(torch.nn.Module):
    """The graph convolution `x' = D^-1/2 (A + I) D^-1/2 x W^T + b`.

    Arguments are those of PyTorch Geometric's `GCNConv`. A node that has a
    self-loop gets no second one. Degrees are sums of the weights of in-edges; where one is negative
    or its weights cancel out, InputError names the first such node.

    Args:
        improved: loops have weight 2; in PyTorch Geometric 2.8 only where edges have weights.
        cached: has no effect: the normalisation of a graph is always computed once and kept.
        add_self_loops: by default the value of `normalize`.
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
            raise InputError("GCNConv: add_self_loops needs normalize=True")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.improved, self.normalize = improved, normalize
        self.add_self_loops = normalize if add_self_loops is None else add_self_loops
        self.lin = Linear(in_channels, out_channels, bias=False, weight_initializer="glorot")
        self.bias = torch.nn.Parameter(torch.zeros(out_channels)) if bias else None

    def reset_parameters(self) -> None:
        self.lin.reset_parameters()
        zero(self.bias)

    def forward(
        self, graph: PartitionedGraph, x: NodeFeatures, then: ReluDropout | None = None
    ) -> Tensor:
        """Map `[n, F]` to `[n, G]`.

        Args:
            then: `Dropout.rectifier` of a ReLU and dropout that follow the layer: applied here,
                they save a pass over memory on a GPU.
        """
        check_rows(
            graph, x, who="GCNConv", width=self.in_channels, constant=True, like=self.lin.weight
        )
        if is_constant(graph, x):
            y_NF = self.lin(self._first_sum(graph))
        elif isinstance(x, Tensor) and not narrows_first(
            graph, self.in_channels, self.out_channels
        ):
            y_NF = self.lin(self._propagate(graph, x))
        else:
            y_NF = self._propagate(graph, self.lin(x))
        if then is not None and y_NF.is_cuda:
            return rectified(y_NF, then, in_place=True, bias_F=self.bias)
        if self.bias is not None:
            y_NF = y_NF.add_(self.bias)
        return y_NF if then is None else rectified(y_NF, then, in_place=True)

    def _first_sum(self, graph: PartitionedGraph) -> Tensor:
        kind = _FirstGCN(self.improved, self.add_self_loops, self.normalize)
        return first_sum(graph, kind, lambda x_NF: self._propagate(graph, x_NF))

    def _propagate(self, graph: PartitionedGraph, x_NF: Tensor) -> Tensor:
        if not self.normalize:
            return neighbour_sum(graph, x_NF)
        loop = 2.0 if self.improved else 1.0
        return normalised_sum(graph, x_NF, loop if self.add_self_loops else None)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


def normalised_sum(graph: PartitionedGraph, x_NF: Tensor, loop: float | None = 1.0) -> Tensor:
    """Return `D^-1/2 (A + loop I) D^-1/2 x`, see `normalisation`; no loops if `loop` is None."""
    check_rows(graph, x_NF, who="a sum over neighbours")

    def times(edges: EdgeBlocks, rows_NF: Tensor, where: str, wire: torch.dtype) -> Tensor:
        return _times(graph, edges, rows_NF, loop, where, wire)

    return linear_sum(graph, x_NF, times)


def _times(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    x_NF: Tensor,
    loop: float | None,
    where: str,
    wire: torch.dtype,
) -> Tensor:
    """Return `D^-1/2 (A + loop I) D^-1/2 x`, a new `[n, F]`; `edges` are those of A or A^T.

    No scaled copy of x is made: its rows are scaled where they are read.
    """
    scale_N1, missing_N1 = normalisation(graph, loop)
    scale_N1 = scale_N1.to(sum_type(x_NF.dtype))
    if x_NF.is_cuda:
        loop_N = None if missing_N1 is None else (scale_N1 * missing_N1)[:, 0]
        after = kernels.RowScale(scale_N1[:, 0], loop_N)
        return multiply(graph, edges, x_NF, True, where, wire, scale_N1[:, 0], after)
    out_NF = multiply(graph, edges, x_NF, True, where, wire, scale_N1[:, 0])
    step = max(1, _CACHED // max(1, out_NF.shape[1] * out_NF.itemsize))
    for low in range(0, len(out_NF), step):
        rows = slice(low, low + step)
        out_SF, scale_S1 = out_NF[rows], scale_N1[rows]
        if missing_N1 is not None:
            out_SF.addcmul_(x_NF[rows] * scale_S1, missing_N1[rows].to(out_NF.dtype))
        out_SF.mul_(scale_S1)
    return out_NF


def normalisation(graph: PartitionedGraph, loop: float | None) -> tuple[Tensor, Tensor | None]:
    """Return `degree^-1/2` and the loop weight missing at each node, both `[n, 1]` and kept.

    With `loop` every node without a self-loop gets one of that weight. Several parallel loops count
    as the heaviest of them, which is the last one in a part; PyTorch Geometric takes the last one
    listed. Collective.

    Raises:
        InputError: the weights into a node, with its loop, sum to less than 0 or cancel out.
    """
    return graph.derived(_Normalisation(loop))


@dataclass(frozen=True)
class _Normalisation:
    loop: float | None

    def build(self, graph: PartitionedGraph) -> tuple[Tensor, Tensor | None]:
        if graph.whole is not None:
            rows = graph.whole_rows
            scale_N1, missing_N1 = graph.whole.derived(self)
            return scale_N1[rows], None if missing_N1 is None else missing_N1[rows]
        blocks = list(graph.in_edges.blocks)
        degree_N, missing_N = torch.tensor(0.0), None
        if self.loop is not None:
            degree_N, missing_N, blocks[graph.in_edges.rank] = _loops(graph, self.loop)
        degree_N = degree_N.to(graph.node_ids.device) + weight_sums(graph, blocks)
        _check_degrees(graph, degree_N, blocks)
        scale_N = torch.where(degree_N > 0, degree_N.rsqrt(), 0.0).float()
        _check_sums(graph, degree_N, scale_N)
        return scale_N[:, None], None if missing_N is None else missing_N.float()[:, None]


def _loops(graph: PartitionedGraph, loop: float) -> tuple[Tensor, Tensor, Block]:
    """Return each node's loop weight, the missing part of it, and the local edges without loops.

    The weights are float64 `[n]`; in the block, loops have weight 0.
    """
    block = graph.in_edges.blocks[graph.in_edges.rank]
    counts = block.end - block.begin
    rows = torch.repeat_interleave(torch.arange(block.num_rows, device=counts.device), counts)
    edges = torch.nonzero(block.columns == rows).flatten()
    rows = rows[edges]
    weight = block.weight
    if weight is None:
        weight = torch.ones(block.columns.shape, device=counts.device)
    found = weight[edges].double()
    is_last = torch.ones_like(rows, dtype=torch.bool)
    is_last[:-1] = rows[1:] != rows[:-1]  # edges ascend by row
    wanted = torch.full((block.num_rows,), loop, dtype=torch.float64, device=counts.device)
    wanted[rows[is_last]] = found[is_last]
    present = torch.zeros_like(wanted).index_add_(0, rows, found)
    if len(edges) > 0:
        block = replace(block, weight=weight.index_fill(0, edges, 0.0))
    return wanted, wanted - present, block


def _check_degrees(graph: PartitionedGraph, degree_N: Tensor, blocks: Sequence[Block]) -> None:
    """Raise InputError on all ranks if a node's degree has no inverse square root."""
    wrong_N = ~((degree_N >= 0) & degree_N.isfinite())
    cancelled_N = degree_N == 0
    if bool(cancelled_N.any()):
        sizes = [b if b.weight is None else replace(b, weight=b.weight.abs()) for b in blocks]
        wrong_N |= cancelled_N & (weight_sums(graph, sizes) > 0)
    _refuse(
        graph,
        wrong_N,
        degree_N,
        "the weights into {count} nodes, self-loops included, do not sum to a finite number above "
        "0 (node {node} is the first), so they can't be normalised; use weights above 0, or a "
        "model without this normalisation",
    )


def _check_sums(graph: PartitionedGraph, degree_N: Tensor, scale_N: Tensor) -> None:
    """Raise InputError if weights differ so much that sums of features up to 1e6 overflow."""
    most = [float(part.max()) if len(part) else 0.0 for part in (degree_N, scale_N)]
    comm = graph.ring.comm
    degree, scale = (comm.allreduce(number, "max", where="degrees") for number in most)
    if degree * scale < _MOST:
        return
    ones_N1 = torch.ones_like(scale_N)[:, None]
    sums_N1 = multiply(graph, graph.in_edges, ones_N1, True, "degrees", scale_N=scale_N)
    _refuse(
        graph,
        ~(sums_N1[:, 0] < _MOST),
        degree_N,
        "the weights into {count} nodes (node {node} is the first) are so much larger than those "
        "of their neighbours that sums over them overflow float32; use weights on one scale",
    )


def _refuse(graph: PartitionedGraph, wrong_N: Tensor, degree_N: Tensor, problem: str) -> None:
    """Raise `problem` on all ranks if a node is wrong, with the number of them and the first."""
    rows = torch.nonzero(wrong_N).flatten()
    ids = graph.original_ids[rows.cpu()]
    first = int(ids.argmin()) if len(ids) else 0
    here = [(int(ids[first]), float(degree_N[rows[first]]), len(ids))] if len(ids) else []
    found = [entry for part in graph.ring.comm.allgather(here, "degrees") for entry in part]
    if found:
        node, degree, _ = min(found)
        count = sum(entry[2] for entry in found)
        error = InputError(problem.format(count=count, node=node), value=degree)
        graph.ring.comm.agree(error, "degrees")
