"""Graphs that are edges alone, made in memory to be measured on."""

from __future__ import annotations

import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.ring import Ring
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph


def of_edges(comm: Communicator, edges: EdgeBlocks) -> PartitionedGraph:
    """A graph of parts alike, each with as many nodes and edges as this one; read both ways."""
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
