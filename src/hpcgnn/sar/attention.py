"""What GAT and GATv2 share: settings, self-loops, edge dropout and the softmax's normalisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.products import row_slabs
from hpcgnn.sar.rectifier import ReluDropout


def local_blocks(graph: PartitionedGraph, edges: EdgeBlocks, self_loops: bool) -> list[Block]:
    """Return the blocks that need no messages; cached.

    With `self_loops`, loops of the graph are replaced by exactly one per node, whose edge features
    are the mean of the node's in-edges, as in PyTorch Geometric.
    """
    block = edges.blocks[edges.rank]
    if not self_loops:
        return [block]
    return graph.derived(_OneLoop(edges is graph.in_edges))


@dataclass(frozen=True)
class _OneLoop:
    """The edges between local nodes with exactly one loop per node, loops first."""

    inward: bool

    def build(self, graph: PartitionedGraph) -> list[Block]:
        edges = graph.in_edges if self.inward else graph.out_edges
        return [_diagonal(graph), _without_loops(edges.blocks[edges.rank])]


def _without_loops(block: Block) -> Block:
    counts = block.end - block.begin
    rows = torch.repeat_interleave(torch.arange(block.num_rows, device=counts.device), counts)
    kept = block.columns != rows
    if bool(kept.all()):
        return block
    counts = torch.bincount(rows[kept], minlength=block.num_rows)
    pointer = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def take(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[kept]

    return replace(
        block,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=block.columns[kept],
        weight=take(block.weight),
        relation=take(block.relation),
        features=take(block.features),
    )


def _diagonal(graph: PartitionedGraph) -> Block:
    count, device = graph.num_local_nodes, graph.node_ids.device
    pointer = torch.arange(count + 1, device=device)
    return Block(
        peer=graph.in_edges.rank,
        num_columns=count,
        rows=None,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=torch.arange(count, dtype=torch.int32, device=device),
        features=_mean_features(graph),
    )


def _mean_features(graph: PartitionedGraph) -> Tensor | None:
    """Return the mean edge features of each node's in-edges, loops left out: `[n, D]`."""
    blocks = graph.in_edges.blocks
    width = next((b.features.shape[1] for b in blocks if b.features is not None), None)
    if width is None:
        return None
    device = graph.node_ids.device
    total = torch.zeros(graph.num_local_nodes, width, dtype=torch.float64, device=device)
    count = torch.zeros(graph.num_local_nodes, 1, dtype=torch.float64, device=device)
    for block in blocks:
        block = _without_loops(block) if block.peer == graph.in_edges.rank else block
        if block.features is None:
            continue
        local = torch.arange(block.num_rows, device=device) if block.rows is None else block.rows
        rows = torch.repeat_interleave(local.long(), block.end - block.begin)
        total.index_add_(0, rows, block.features.double())
        count[local.long(), 0] += block.end - block.begin
    return (total / count.clamp(min=1)).float()


@dataclass(frozen=True)
class AttentionSettings:
    """Settings of an attention layer, which don't change with the weights.

    Attributes:
        layer: number that gives each layer of a model its own dropout masks.
        first_head: number of the first of these `heads` among all heads of the layer.
    """

    heads: int
    slope: float = 0.2
    dropout: float = 0.0
    layer: int = 0
    self_loops: bool = True
    first_head: int = 0


def exchange_halo_ids(
    graph: PartitionedGraph, edges: EdgeBlocks, settings: AttentionSettings
) -> None:
    """Exchange the node ids that dropout needs; collective, also for ranks that receive no block.

    Raises:
        InputError: the ranks numbered the layer differently, so that their masks would not agree.
    """
    if not settings.dropout:
        return
    halo_ids(graph, edges)
    graph.derived(_AgreedLayer(settings.layer))


@dataclass(frozen=True)
class _AgreedLayer:
    """A check, done once, that all ranks gave the layer this number."""

    layer: int

    def build(self, graph: PartitionedGraph) -> bool:
        numbers = graph.ring.comm.allgather(self.layer, where="layer number")
        if len(set(numbers)) > 1:
            raise InputError(
                "the layers' numbers differ between ranks: build the model after the same "
                "torch.manual_seed on every rank, or give layer="
            )
        return True


def edge_dropout(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    block: Block,
    settings: AttentionSettings,
    epoch: int,
    reverse: bool = False,
) -> kernels.EdgeDropout | None:
    """Return the dropout of a block's edges, keyed by original ids; None without dropout."""
    if settings.dropout == 0:
        return None
    columns = graph.node_ids
    if block.peer != edges.rank:
        low = block.column_offset
        columns = halo_ids(graph, edges)[block.peer][low : low + block.num_columns]
    sources, destinations = (graph.node_ids, columns) if reverse else (columns, graph.node_ids)
    return kernels.EdgeDropout(
        settings.dropout,
        graph.seed,
        epoch,
        settings.layer,
        sources,
        destinations,
        settings.first_head,
    )


def halo_ids(graph: PartitionedGraph, edges: EdgeBlocks) -> list[Tensor]:
    """Return the node ids of the halo rows from each peer: int64; collective once, then cached."""
    return graph.derived(_HaloIds(edges is graph.in_edges))


@dataclass(frozen=True)
class _HaloIds:
    inward: bool

    def build(self, graph: PartitionedGraph) -> list[Tensor]:
        edges = graph.in_edges if self.inward else graph.out_edges
        sent = [graph.node_ids[rows.long()].cpu().numpy() for rows in edges.send_rows]
        received = graph.ring.comm.alltoallv(sent, where="halo ids")
        return [torch.from_numpy(ids).to(graph.node_ids.device) for ids in received]


def normalised(
    softmax: kernels.RunningSoftmax,
    bias_K: Tensor | None,
    ids_N: Tensor,
    then: ReluDropout | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output and log-sum-exp of each node and head; without in-edges, the bias and 0.

    Args:
        softmax: accumulated over all edges; its `out` is overwritten.
        ids_N: the nodes' ids.
        then: applied to the output.
        dtype: of the output on a GPU, by default that of the sums; on a CPU it keeps the latter.
    """
    out_NK, none = softmax.out, softmax.row_sum == 0
    row_sum_NH = softmax.row_sum.masked_fill(none, 1.0)
    out_NHC = out_NK.view(*row_sum_NH.shape, out_NK.shape[1] // row_sum_NH.shape[1])
    bias_HC = None if bias_K is None else bias_K.to(out_NK.dtype).view(out_NHC.shape[1:])
    lse_NH = softmax.row_max.masked_fill(none, 0.0) + row_sum_NH.log()
    if not kernels.takes_whole_blocks(out_NK.device):  # a GPU does all at once
        bias_K = None if bias_HC is None else bias_HC.detach().flatten()
        sums, y_NK = kernels.Sums(row_sum_NH, bias_K), out_NK
        if dtype is not None and dtype != out_NK.dtype:
            y_NK = torch.empty_like(out_NK, dtype=dtype)
        if then is not None:
            then.apply(out_NK, y_NK, sums=sums)
        else:
            kernels.dropout_nodes(out_NK, y_NK, ids_N, p=0, seed=0, epoch=0, layer=0, sums=sums)
        return y_NK, lse_NH
    for rows in row_slabs(out_NK):
        out_SHC, sum_SH1 = out_NHC[rows], row_sum_NH[rows, :, None]
        if bias_HC is None:
            out_SHC.div_(sum_SH1)
        else:
            torch.addcdiv(bias_HC, out_SHC, sum_SH1, out=out_SHC)
        if then is not None:
            then.of(rows).apply(out_NK[rows], out_NK[rows])
    return out_NK, lse_NH


def head_mean(graph: PartitionedGraph, out_NK: Tensor, heads: int) -> Tensor:
    """Return the mean over heads, `[n, C]`; its gradient reuses memory of an earlier array."""
    result: Tensor = _HeadMean.apply(out_NK, graph, heads)
    return result


class _HeadMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out_NK: Tensor, graph: PartitionedGraph, heads: int) -> Tensor:
        ctx.arrays, ctx.heads, ctx.dtype = graph.execution.arrays, heads, out_NK.dtype
        return out_NK.unflatten(1, (heads, -1)).mean(dim=1)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        count, channels = grads[0].shape
        width = ctx.heads * channels
        grad_NK = ctx.arrays.empty(count, width, dtype=ctx.dtype, device=grads[0].device)
        grad_NHC = grad_NK.unflatten(1, (ctx.heads, channels))
        for rows in row_slabs(grad_NK):
            grad_NHC[rows] = (grads[0][rows] / ctx.heads)[:, None, :]
        return grad_NK, None, None


def bias_gradient(g_NK: Tensor, bias_K: Tensor | None) -> Tensor | None:
    """Return `sum_n g[n]` in the dtype of the bias; None without a bias."""
    return None if bias_K is None else g_NK.sum(dim=0, dtype=bias_K.dtype)
