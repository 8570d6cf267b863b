"""The time of a layer's pass when there is almost nothing to compute."""

from __future__ import annotations

import time

import torch

from hpcgnn.bench.graphs import of_edges
from hpcgnn.bench.timing import synchronise
from hpcgnn.comm.communicator import Communicator
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.nn import Dropout, GCNConv

_NODES = 4  # of a rank
_WIDTH = 16
_LAYERS = 4
_EPOCHS = 12


def seconds_of_step(comm: Communicator, device: torch.device) -> float:
    """Return the seconds of a layer's pass, least of several, on the slowest rank. Collective."""
    graph = _everyone_reads_everyone(comm, device)
    layers = [GCNConv(_WIDTH, _WIDTH).to(device) for _ in range(_LAYERS)]
    dropout = Dropout(0.5)
    x_NF = torch.randn(_NODES, _WIDTH, device=device, requires_grad=True)
    found = []
    for epoch in range(_EPOCHS):
        graph.set_epoch(epoch)
        synchronise()
        comm.barrier("bench machine")
        start = time.perf_counter()
        h_NF = x_NF
        for layer in layers:
            h_NF = dropout(graph, torch.relu(layer(graph, h_NF)))
        h_NF.sum().backward()
        synchronise()
        found.append((time.perf_counter() - start) / (2 * _LAYERS))
    return float(comm.allreduce(min(found), "max", where="bench machine"))


def _everyone_reads_everyone(comm: Communicator, device: torch.device) -> PartitionedGraph:
    """Return a graph in which each node has an in-neighbour on every rank."""
    rows = torch.arange(_NODES, device=device)
    blocks = [
        Block(
            peer=peer,
            num_columns=_NODES,
            rows=None,
            begin=rows,
            end=rows + 1,
            columns=rows.to(torch.int32),
        )
        for peer in range(comm.size)
    ]
    nothing = torch.empty(0, dtype=torch.int32, device=device)
    sent = [nothing if peer == comm.rank else blocks[peer].columns for peer in range(comm.size)]
    return of_edges(comm, EdgeBlocks(comm.rank, blocks, sent))
