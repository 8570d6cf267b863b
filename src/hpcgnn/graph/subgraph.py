"""Graphs without nodes that no target depends on, or without edges that are to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block

WORTHWHILE = 0.5  # a layer is pruned if at most this share of all edges is left


@dataclass(frozen=True)
class Step:
    """One pruned layer.

    Attributes:
        graph: the nodes the layer reads, in ascending local order.
        enter: rows of the whole part that are read; None if the layer before was pruned too.
        leave: rows of `graph` at which the layer's output is needed: int64.
        after: the nodes of `leave`, for operations on single nodes.
    """

    graph: PartitionedGraph
    enter: Tensor | None
    leave: Tensor
    after: PartitionedGraph


def message_flow(
    graph: PartitionedGraph, target_N: Tensor, hops: Sequence[int | None]
) -> list[Step | None]:
    """Return a step per layer, None for whole layers, which come first. Collective.

    The first layer is never pruned: sums of constant features are computed only once anyway.

    Args:
        target_N: bool `[n]`, the nodes at which the last layer's output is needed.
        hops: hops over edges of each layer, see `nn.hops`; a layer with None is not pruned.
    """
    steps: list[Step | None] = [None] * len(hops)
    for layer in range(len(hops) - 1, 0, -1):
        found = _within(graph, target_N, hops[layer])
        if found is None:
            break
        source_N, inner_N, used = found
        small = _restrict(graph, source_N, inner_N, used)
        place_N = source_N.cumsum(0) - 1
        steps[layer] = Step(
            graph=small,
            enter=torch.nonzero(source_N).flatten(),
            leave=place_N[target_N],
            after=_nodes(graph, torch.nonzero(target_N).flatten()),
        )
        target_N = source_N
    for layer in range(len(hops) - 1, 0, -1):
        step, before = steps[layer], steps[layer - 1]
        if step is not None and before is not None:
            steps[layer] = replace(step, enter=None)
    return steps


def _within(
    graph: PartitionedGraph, target_N: Tensor, hops: int | None
) -> tuple[Tensor, Tensor, list[Tensor]] | None:
    """Return masks of the nodes within `hops` hops of a target, and of those within one hop less.

    Also returns, per peer, the halo rows read by the edges into the latter. None if pruning isn't
    worthwhile, or if `hops` is unknown.
    """
    if hops is None:
        return None
    comm, source_N, inner_N = graph.ring.comm, target_N, torch.zeros_like(target_N)
    used = [inner_N.new_zeros(block.num_columns) for block in graph.in_edges.blocks]
    for _ in range(hops):
        grown = comm.allreduce(int((source_N & ~inner_N).sum()), where="prune")
        if not grown:  # every further hop keeps the same edges
            break
        inner_N = source_N
        kept = comm.allreduce(_edges_into(graph, inner_N), where="prune")
        if kept > WORTHWHILE * graph.num_edges:
            return None
        source_N, used = _reach(graph, inner_N)
    return source_N, inner_N, used


def _nodes(graph: PartitionedGraph, rows: Tensor) -> PartitionedGraph:
    """Return these rows of the part without edges, for dropout and norms of single nodes."""
    return replace(
        graph,
        node_ids=graph.node_ids[rows],
        original_ids=graph.original_ids[rows.cpu()],
        features=None,
        typed_features={},
        labels=None,
        train_mask=None,
        valid_mask=None,
        test_mask=None,
        node_types=None,
        nodes={},
        edge_labels=None,
        edge_split=None,
        whole=None,
        whole_rows=None,
    )


def rows_of(block: Block) -> Tensor:
    """Return the local row of each row of the block: int64."""
    if block.rows is not None:
        return block.rows.long()
    return torch.arange(block.num_rows, device=block.begin.device)


def _edges_into(graph: PartitionedGraph, target_N: Tensor) -> int:
    return sum(
        int(((block.end - block.begin) * target_N[rows_of(block)]).sum())
        for block in graph.in_edges.blocks
    )


def _kept_edges(block: Block, row_kept: Tensor) -> Tensor:
    """Return bool per edge: whether its row is kept; the rows must cover all edges of the block."""
    return torch.repeat_interleave(row_kept, block.end - block.begin)


def _tell(graph: PartitionedGraph, masks: list[Tensor], where: str) -> list[Tensor]:
    """Send masks[p] (bool) to rank p; return the masks that each rank sent."""
    sent = [mask.to(torch.uint8).cpu().numpy() for mask in masks]
    device = graph.node_ids.device
    return [
        torch.from_numpy(got).to(device).bool() for got in graph.ring.comm.alltoallv(sent, where)
    ]


def _reach(graph: PartitionedGraph, target_N: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return targets and sources of edges into them; per peer, the halo rows still used."""
    edges, source_N = graph.in_edges, target_N.clone()
    used = []
    for block in edges.blocks:
        kept = _kept_edges(block, target_N[rows_of(block)])
        mask = torch.zeros(block.num_columns, dtype=torch.bool, device=target_N.device)
        mask[block.columns[kept].long()] = True
        used.append(mask)
    source_N |= used[edges.rank]
    wanted = _tell(
        graph, [m[:0] if p == edges.rank else m for p, m in enumerate(used)], "prune halo"
    )
    for rows, mask in zip(edges.send_rows, wanted, strict=True):
        source_N[rows.long()[mask]] = True
    return source_N, used


def _restrict(
    graph: PartitionedGraph, source_N: Tensor, target_N: Tensor, used: list[Tensor]
) -> PartitionedGraph:
    """Return the nodes of `source_N` with the edges into `target_N`, a subset of them."""
    inward, outward, rank = graph.in_edges, graph.out_edges, graph.in_edges.rank
    place_N = source_N.cumsum(0) - 1
    hidden = [m[:0] if p == rank else m for p, m in enumerate(used)]
    wanted = _tell(graph, hidden, "prune send lists")
    is_target = [target_N[rows.long()] for rows in outward.send_rows]
    theirs = _tell(graph, is_target, "prune targets")
    in_blocks, out_blocks = [], []
    for block in inward.blocks:
        columns = source_N if block.peer == rank else used[block.peer]
        kept = _kept_edges(block, target_N[rows_of(block)])
        in_blocks.append(filter_block(block, kept, place_N, columns, block.peer == rank))
    with agreed(graph.comm, "prune"):
        for block in outward.blocks:
            columns = source_N if block.peer == rank else theirs[block.peer]
            reached = target_N if block.peer == rank else theirs[block.peer]
            kept = reached[block.columns.long()]
            _check_reversed(block, kept, source_N)
            out_blocks.append(filter_block(block, kept, place_N, columns, block.peer == rank))
    kept = torch.nonzero(source_N).flatten()
    return replace(
        _nodes(graph, kept),
        in_edges=EdgeBlocks(rank, in_blocks, _senders(inward, wanted, place_N)),
        out_edges=EdgeBlocks(rank, out_blocks, _senders(outward, is_target, place_N)),
        whole=graph,
        whole_rows=kept,
    )


def _check_reversed(block: Block, kept: Tensor, source_N: Tensor) -> None:
    """Check that the kept edges to a rank begin at nodes from which it has edges."""
    ends = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    unread = (ends[block.end] > ends[block.begin]) & ~source_N[rows_of(block)]
    if bool(unread.any()):
        raise InputError(
            "prune: the edges from this part are not those into another: partition the graph again",
            value=f"local row {int(rows_of(block)[unread][0])}, edges to part {block.peer}",
        )


def _senders(edges: EdgeBlocks, masks: list[Tensor], place_N: Tensor) -> list[Tensor]:
    return [
        place_N[rows.long()[mask]].to(torch.int32)
        for rows, mask in zip(edges.send_rows, masks, strict=True)
    ]


def filter_block(
    block: Block, kept: Tensor, place_N: Tensor, columns: Tensor, local: bool
) -> Block:
    """Return a block of the kept edges, renumbered; a local block keeps a row per node."""
    counts = block.end - block.begin
    ends = torch.cat([counts.new_zeros(1), kept.cumsum(0)])
    left = ends[block.end] - ends[block.begin]
    new_column = (columns.cumsum(0) - 1).to(torch.int32)
    rows = None
    if local:
        left = left[columns]
    else:
        present = left > 0
        rows = place_N[rows_of(block)[present]].to(torch.int32)
        left = left[present]
    pointer = torch.cat([left.new_zeros(1), left.cumsum(0)])

    def take(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[kept]

    return replace(
        block,
        num_columns=int(columns.sum()),
        rows=rows,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=new_column[block.columns[kept].long()],
        weight=take(block.weight),
        relation=take(block.relation),
        features=take(block.features),
    )


def without_edges(graph: PartitionedGraph, hidden_E: Tensor) -> PartitionedGraph:
    """Return the same nodes without the hidden edges. Collective.

    Args:
        hidden_E: bool, in the order of `sar.messages.edge_features`.

    Raises:
        InputError: only some of several parallel edges are hidden, or only one direction of an
            undirected graph's edge.
    """
    hidden = _split(hidden_E, graph.in_edges)
    with agreed(graph.comm, "hide edges"):
        for block, mask in zip(graph.in_edges.blocks, hidden, strict=True):
            _check_parallel(block, mask)
    reversed_hidden = _reversed(graph, hidden)
    if graph.symmetric:
        with agreed(graph.comm, "hide edges"):
            if any(not torch.equal(a, b) for a, b in zip(hidden, reversed_hidden, strict=True)):
                raise InputError("the two directions of an undirected edge are in different splits")
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
    """Return one number per (row, column) of each edge: int64."""
    rows = torch.repeat_interleave(rows_of(block), block.end - block.begin)
    return rows * max(block.num_columns, 1) + block.columns.long()


def _check_parallel(block: Block, hidden: Tensor) -> None:
    keys = _keys(block)
    if bool(torch.isin(keys[hidden], keys[~hidden]).any()):
        raise InputError("several edges between the same two nodes are in different splits")


def _reversed(graph: PartitionedGraph, hidden: list[Tensor]) -> list[Tensor]:
    """Return masks of the hidden edges in `out_edges`, by messages to the sources' owners."""
    inward, outward, rank = graph.in_edges, graph.out_edges, graph.in_edges.rank
    sent = []
    for block, mask in zip(inward.blocks, hidden, strict=True):
        row = torch.repeat_interleave(rows_of(block), block.end - block.begin)[mask]
        if block.peer != rank:  # sent as its position in the reversed graph's send list
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
