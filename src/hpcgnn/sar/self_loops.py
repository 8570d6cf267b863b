"""Edges between local nodes with at most one self-loop per node, where layers ask for that."""

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


def with_last_loops(graph: PartitionedGraph) -> PartitionedGraph:
    """The graph with the last alone of a node's parallel self-loops; kept. Collective.

    It is the graph itself where no node has several that are weighted.
    """
    return graph.derived(_LastLoops()) or graph


@dataclass(frozen=True)
class _LastLoops:
    def build(self, graph: PartitionedGraph) -> PartitionedGraph | None:
        several = _is_followed(graph.in_edges.blocks[graph.in_edges.rank])
        if not graph.comm.allreduce(int(several.any()), "max", where="parallel self-loops"):
            return None
        in_edges = _last_alone(graph.in_edges)
        out_edges = in_edges if graph.symmetric else _last_alone(graph.out_edges)
        whole = None if graph.whole is None else with_last_loops(graph.whole)
        return replace(graph, in_edges=in_edges, out_edges=out_edges, whole=whole)


def _is_followed(block: Block) -> Tensor:
    """bool `[E]`: of an edge, whether it is a weighted self-loop that another one follows."""
    if block.weight is None:
        return torch.zeros(len(block.columns), dtype=torch.bool, device=block.columns.device)
    rows = _rows(block)
    loops = torch.nonzero(block.columns == rows).flatten()
    several = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    several[loops[:-1]] = rows[loops[:-1]] == rows[loops[1:]]  # edges ascend by row
    return several


def _last_alone(edges: EdgeBlocks) -> EdgeBlocks:
    blocks = list(edges.blocks)
    block = blocks[edges.rank]
    blocks[edges.rank] = _filtered(block, ~_is_followed(block))
    return replace(edges, blocks=blocks)


def _rows(block: Block) -> Tensor:
    """The row of each edge between local nodes."""
    counts = block.end - block.begin
    return torch.repeat_interleave(torch.arange(block.num_rows, device=counts.device), counts)


def _without_loops(block: Block) -> Block:
    return _filtered(block, block.columns != _rows(block))


def _filtered(block: Block, kept: Tensor) -> Block:
    """The edges between local nodes that are kept."""
    if bool(kept.all()):
        return block
    rows = _rows(block)
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
