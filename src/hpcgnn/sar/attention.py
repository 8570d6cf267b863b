"""What GAT and GATv2 share: settings, dropout of edges, the end of the softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block


@dataclass(frozen=True)
class AttentionSettings:
    """What doesn't change with the weights. `layer` tells dropout masks of one model apart.

    `first_head`: number of the first of `heads` among all of the layer.
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
    """Learn the ids that dropout needs; by all ranks, also those that receive no block.

    Raises:
        InputError: the ranks gave the layer different numbers, so that masks wouldn't agree.
    """
    if not settings.dropout:
        return
    halo_ids(graph, edges)
    graph.derived(_AgreedLayer(settings.layer))


@dataclass(frozen=True)
class _AgreedLayer:
    """That all ranks gave a layer this number: they ask each other once."""

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
    """The dropout of a block's edges, by original ids; None without dropout."""
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
    """Node ids of the halo rows from each peer (int64); collective on first use, kept."""
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
    row_max_NH: Tensor, row_sum_NH: Tensor, out_NK: Tensor, bias_K: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of each node and head; without in-edges the bias alone and 0.

    Args:
        row_max_NH, row_sum_NH: largest score, and sum of exponentials relative to it.
        out_NK: sum weighted by these exponentials, `[n, heads * channels]`; becomes the output.
    """
    none = row_sum_NH == 0
    row_sum_NH = row_sum_NH.masked_fill(none, 1.0)
    out_NHC = out_NK.view(*row_sum_NH.shape, out_NK.shape[1] // row_sum_NH.shape[1])
    if bias_K is None:
        out_NHC.div_(row_sum_NH[:, :, None])
    else:
        bias_HC = bias_K.to(out_NK.dtype).view(out_NHC.shape[1:])
        torch.addcdiv(bias_HC, out_NHC, row_sum_NH[:, :, None], out=out_NHC)
    return out_NK, row_max_NH.masked_fill(none, 0.0) + row_sum_NH.log()


def bias_gradient(g_NK: Tensor, bias_K: Tensor | None) -> Tensor | None:
    """`sum_n g[n]` in the bias's type."""
    return None if bias_K is None else g_NK.sum(dim=0, dtype=bias_K.dtype)
