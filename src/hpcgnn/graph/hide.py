"""A graph without some of its edges: no message goes along those that are to be predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.graph.subgraph import filter_block, rows_of
from hpcgnn.kernels.block import Block


def without_edges(graph: PartitionedGraph, hidden_E: Tensor) -> PartitionedGraph:
    """The same nodes with the edges left that aren't hidden; collective.

    Args:
        hidden_E: bool, in the order of `sar.messages.edge_features`.

    Raises:
        InputError: of parallel edges some are hidden, or of an undirected graph's edge one way.
    """
    hidden = _split(hidden_E, graph.in_edges)
    with agreed(graph.comm, "hide edges"):
        for block, mask in zip(graph.in_edges.blocks, hidden, strict=True):
            _check_parallel(block, mask)
    reversed_hidden = _reversed(graph, hidden)
    if graph.symmetric:
        with agreed(graph.comm, "hide edges"):
            if any(not torch.equal(a, b) for a, b in zip(hidden, reversed_hidden, strict=True)):
                raise InputError("an undirected edge is split otherwise in its two directions")
    in_edges = _filtered(graph.in_edges, hidden)
    left = graph.comm.allreduce(int((~hidden_E).sum()), where="hide edges")
    return replace(
        graph,
        num_edges=left,
        in_edges=in_edges,
        out_edges=in_edges if graph.symmetric else _filtered(graph.out_edges, reversed_hidden),
    )


def _split(values_E: Tensor, edges: EdgeBlocks) -> list[Tensor]:
    return list(values_E.split([block.columns.shape[0] for block in edges.blocks]))


def _filtered(edges: EdgeBlocks, hidden: list[Tensor]) -> EdgeBlocks:
    blocks = []
    for block, mask in zip(edges.blocks, hidden, strict=True):
        most = int(rows_of(block).max()) + 1 if block.num_rows else 0
        place = torch.arange(max(most, block.num_columns), device=mask.device)
        every = torch.ones(block.num_columns, dtype=torch.bool, device=mask.device)
        blocks.append(filter_block(block, ~mask, place, every, block.peer == edges.rank))
    return EdgeBlocks(edges.rank, blocks, edges.send_rows)


def _keys(block: Block) -> Tensor:
    """One number per (row, column) of each edge: int64."""
    rows = torch.repeat_interleave(rows_of(block), block.end - block.begin)
    return rows * max(block.num_columns, 1) + block.columns.long()


def _check_parallel(block: Block, hidden: Tensor) -> None:
    keys = _keys(block)
    if bool(torch.isin(keys[hidden], keys[~hidden]).any()):
        raise InputError("of several edges between the same two nodes some have another split")


def _reversed(graph: PartitionedGraph, hidden: list[Tensor]) -> list[Tensor]:
    """The hidden edges as the owners of their sources know them, which learn it by a message."""
    inward, outward, rank = graph.in_edges, graph.out_edges, graph.in_edges.rank
    sent = []
    for block, mask in zip(inward.blocks, hidden, strict=True):
        row = torch.repeat_interleave(rows_of(block), block.end - block.begin)[mask]
        if block.peer != rank:  # where the row is in the list that the source's owner reads by
            listed = outward.send_rows[block.peer].long()
            order = listed.argsort()
            row = order[torch.searchsorted(listed[order], row)]
        pairs = torch.stack([block.columns[mask].long(), row], dim=1)
        sent.append(pairs.cpu().numpy().astype(np.int64))
    masks = []
    told = graph.comm.alltoallv(sent, where="hide edges")
    for block, theirs in zip(outward.blocks, told, strict=True):
        column, row = torch.from_numpy(theirs).to(graph.node_ids.device).T
        if block.peer != rank:
            column = inward.send_rows[block.peer].long()[column]
        masks.append(torch.isin(_keys(block), column * max(block.num_columns, 1) + row))
    return masks
