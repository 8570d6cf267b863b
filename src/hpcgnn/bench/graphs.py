"""Graphs of edges alone, made in memory for measurements."""

from __future__ import annotations

import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph


def of_edges(comm: Communicator, edges: EdgeBlocks) -> PartitionedGraph:
    """Return a graph whose parts all have these edges, which are used in both directions."""
    begin = edges.blocks[comm.rank].begin
    num_nodes = len(begin)
    num_edges = sum(block.columns.shape[0] for block in edges.blocks)
    ids = torch.arange(num_nodes, device=begin.device) + num_nodes * comm.rank
    return PartitionedGraph(
        num_nodes=num_nodes * comm.size,
        num_edges=num_edges * comm.size,
        num_classes=0,
        node_ids=ids,
        original_ids=ids,
        in_edges=edges,
        out_edges=edges,
        execution=Execution(Ring(comm)),
    )
