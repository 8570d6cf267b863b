"""The edges between local nodes as attention sees them: one self-loop per node where asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block


def local_blocks(graph: PartitionedGraph, edges: EdgeBlocks, self_loops: bool) -> list[Block]:
    """Blocks that need no messages; kept.

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
    """Mean edge features over each node's in-edges that are no loops: `[n, D]`."""
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
