"""Assembly of parts from slabs of a graph and an owner per node.

All data is exchanged between ranks: a rank never holds more than its slab and its own parts.

    parts, numbers = layout.build(comm, slab, nodes, owner, num_parts, num_nodes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.layout.blocks import (
    assemble_blocks,
    is_symmetric,
    local_order,
    with_send_lists,
)
from hpcgnn.partition.layout.columns import (
    Columns,
    agree,
    check_lengths,
    distribute,
    node_columns,
    take,
)
from hpcgnn.partition.quality import Numbers
from hpcgnn.partition.routing import (
    Array,
    Int64,
    Route,
    Slabs,
    between_parts,
    distinct,
    edge_positions,
    group_by,
    local_parts,
    pointers,
    positions,
)
from hpcgnn.sorting import sorted_unique
from hpcgnn.storage.read.graph_file import GraphSlab
from hpcgnn.storage.read.nodes import NodeData
from hpcgnn.storage.read.partition_file import EdgeLists, Part

_EDGE_COLUMNS = ("weight", "relation", "features")  # used by messages, in both directions
_INT64 = np.empty(0, np.int64)


@dataclass
class _Draft:
    """A part during its assembly. Old local indices ascend with the node's id."""

    index: int
    arrived: Int64  # its nodes among those that arrived on this rank: [n]
    ids: Int64  # [n] ascending
    row: Array  # [E] old local destination
    source: Array  # [E] position in the table of sources
    source_ids: Int64  # [U] the table: distinct, ascending
    columns: Columns
    peer: Int64 = field(default_factory=lambda: _INT64)  # [U] the part of each source
    order: Int64 = field(default_factory=lambda: _INT64)  # [n] old local indices in final order
    position: Array = field(default_factory=lambda: _INT64)  # [n] its inverse


def build(
    comm: Communicator,
    slab: GraphSlab,
    nodes: NodeData,
    owner: Array,
    num_parts: int,
    num_nodes: int,
) -> tuple[list[Part], Numbers]:
    """Assemble the parts, part p on rank `p % comm.size`. Collective.

    Args:
        slab: rows `lo .. hi - 1` of the in-neighbour lists; ranks hold consecutive slabs that
            cover the graph, any may be empty. Its indices, the largest array, are freed on the way.
        nodes: the same rows of the node data.
        owner: the part of each row, integers `[hi - lo]` in `0 .. num_parts - 1`.

    Returns:
        The parts of this rank in ascending order, and the counts of all parts.

    Raises:
        InputError: the slabs don't cover the graph, a part is out of range, an array has the wrong
            length, or a part is too large for 32-bit local indices.
    """
    slabs = Slabs(comm, slab.lo, slab.hi, num_nodes)
    edges = agree(
        comm,
        {
            "weight": slab.weight,
            "relation": slab.relation,
            "features": slab.edge_features,
            "labels": slab.edge_labels,
            "split": slab.edge_split,
        },
    )
    carried = {name: column for name, column in edges.items() if name in _EDGE_COLUMNS}
    columns = node_columns(comm, nodes)
    with agreed(comm, "layout"):
        _check(slab, edges, columns, owner, num_parts, num_nodes)
    owner = np.asarray(owner, np.int32)
    symmetric = is_symmetric(comm, slab.lo, slab.indptr, slab.indices, carried)

    route = Route.to_parts(comm, owner)
    drafts = _collect(comm, route, slab, edges, owner, num_parts, num_nodes)
    slab.indices = slab.indices[:0].copy()
    _find_owners(slabs, drafts, owner)
    in_edges, halo_indices = _in_edges(comm, num_parts, drafts, symmetric)
    out_edges: Sequence[EdgeLists | None] = [None] * len(drafts)
    if not symmetric:
        out_edges = _out_edges(comm, num_parts, drafts, in_edges, halo_indices)
    columns = distribute(comm, route, columns)
    parts = [
        _finished(draft, columns, num_parts, inward, outward)
        for draft, inward, outward in zip(drafts, in_edges, out_edges, strict=True)
    ]
    return parts, _numbers(comm, num_parts, parts, symmetric)


def _finished(
    draft: _Draft, columns: Columns, num_parts: int, inward: EdgeLists, outward: EdgeLists | None
) -> Part:
    """Return the part with its node data, in the final order of the nodes."""
    data = take(columns, draft.arrived[draft.order])
    return Part(
        index=draft.index,
        num_parts=num_parts,
        ids=draft.ids[draft.order],
        original_ids=data.original_ids,
        nodes=data,
        in_edges=inward,
        out_edges=outward,
    )


def _check(
    slab: GraphSlab, edges: Columns, columns: Columns, owner: Array, num_parts: int, num_nodes: int
) -> None:
    rows = slab.hi - slab.lo
    if num_parts < 1:
        raise InputError("a partition needs at least one part", value=num_parts)
    if len(slab.indptr) != rows + 1 or int(slab.indptr[-1]) != len(slab.indices):
        raise InputError(f"indptr doesn't fit {rows} rows and {len(slab.indices)} edges")
    if len(slab.indices) and not 0 <= slab.indices.min() <= slab.indices.max() < num_nodes:
        raise InputError(f"an edge leaves the graph of {num_nodes} nodes")
    for name, column in edges.items():
        if len(column) != len(slab.indices):
            raise InputError(f"{name}: {len(column)} values, {len(slab.indices)} edges")
    if len(owner) != rows:
        raise InputError(f"{len(owner)} owners for {rows} rows")
    if rows and not 0 <= owner.min() <= owner.max() < num_parts:
        wrong = owner[(owner < 0) | (owner >= num_parts)][0]
        raise InputError(f"owner outside 0 .. {num_parts - 1}", value=int(wrong))
    check_lengths(columns, rows)


def _collect(
    comm: Communicator,
    route: Route,
    slab: GraphSlab,
    edges: Columns,
    owner: Array,
    num_parts: int,
    num_nodes: int,
) -> list[_Draft]:
    """Send the rows of each part, with their edges, to the rank that assembles it."""
    ids = route.rows(np.arange(slab.lo, slab.hi, dtype=np.int64))
    part = route.rows(owner)
    indptr = pointers(route.rows(np.diff(slab.indptr)))
    narrow = np.int32 if num_nodes < 2**31 else np.int64
    sources = route.ragged(slab.indptr, slab.indices.astype(narrow, copy=False))
    columns = {name: route.ragged(slab.indptr, values) for name, values in edges.items()}
    drafts = []
    for p in local_parts(comm, num_parts):
        mine = np.flatnonzero(part == p)
        places = edge_positions(indptr, mine) if len(mine) < len(part) else slice(None)
        table, source = distinct(sources[places], num_nodes)
        drafts.append(
            _Draft(
                index=p,
                arrived=mine,
                ids=ids[mine],
                row=np.repeat(positions(len(mine)), np.diff(indptr)[mine]),
                source=source,
                source_ids=table,
                columns={name: values[places] for name, values in columns.items()},
            )
        )
    return drafts


def _find_owners(slabs: Slabs, drafts: list[_Draft], owner: Array) -> None:
    """Look up the part of every source on the ranks that hold the slabs."""
    wanted = sorted_unique(np.concatenate([_INT64, *(draft.source_ids for draft in drafts)]))
    peers = slabs.lookup(wanted, owner).astype(np.int64)
    for draft in drafts:
        draft.peer = peers[np.searchsorted(wanted, draft.source_ids)]


def _in_edges(
    comm: Communicator, num_parts: int, drafts: list[_Draft], symmetric: bool
) -> tuple[list[EdgeLists], list[Int64]]:
    """Return the in-edges of each part, and the owners' local indices of its halo rows.

    Each part is asked for the local indices of the rows that are read from it, and settles the
    order of its nodes before it answers.
    """
    by_peer = [group_by(draft.peer, num_parts)[1] for draft in drafts]
    counts = [np.bincount(draft.peer, minlength=num_parts) for draft in drafts]
    asked, asked_counts = between_parts(
        comm,
        num_parts,
        [draft.source_ids[order] for draft, order in zip(drafts, by_peer, strict=True)],
        counts,
        _INT64,
    )
    answers = []
    for draft, ids, count in zip(drafts, asked, asked_counts, strict=True):
        local = np.searchsorted(draft.ids, ids)
        _settle_order(draft, local, np.repeat(np.arange(num_parts), count), symmetric)
        answers.append(draft.position[local])
    indices, _ = between_parts(comm, num_parts, answers, asked_counts, _INT64)

    lists, halo_indices = [], []
    for draft, order, index in zip(drafts, by_peer, indices, strict=True):
        peer = draft.peer[order]
        final = np.lexsort((index, peer))
        rank_in_table = np.empty_like(positions(len(order)))
        rank_in_table[order[final]] = positions(len(order))
        peer, index = peer[final], index[final]
        lists.append(
            assemble_blocks(
                draft.index,
                num_parts,
                len(draft.ids),
                draft.position[draft.row],
                rank_in_table[draft.source],
                peer,
                index,
                draft.columns,
            )
        )
        halo_indices.append(index[peer != draft.index])
        draft.row = draft.source = _INT64
        draft.columns = {}
    return with_send_lists(comm, num_parts, lists, halo_indices), halo_indices


def _settle_order(draft: _Draft, local: Int64, reader: Int64, symmetric: bool) -> None:
    """Set the order of a draft's nodes; `local` are old local indices that part `reader` reads."""
    n = len(draft.ids)
    sent = np.zeros(n, bool)
    sent[local[reader != draft.index]] = True
    inside = draft.peer == draft.index
    old = np.full(len(draft.source_ids), -1, np.int32)
    old[inside] = np.searchsorted(draft.ids, draft.source_ids[inside])
    column = old[draft.source]
    within = column >= 0
    row, column = draft.row[within], column[within]
    draft.order = local_order(n, row, column, sent, symmetric=symmetric)
    draft.position = np.empty_like(positions(n))
    draft.position[draft.order] = positions(n)


def _out_edges(
    comm: Communicator,
    num_parts: int,
    drafts: list[_Draft],
    in_edges: list[EdgeLists],
    halo_indices: list[Int64],
) -> list[EdgeLists]:
    """Return the out-edges of each part.

    Every edge is sent, as (source, destination) local indices, to its source's part.
    """
    sources, destinations = [], []
    for draft, lists, halo in zip(drafts, in_edges, halo_indices, strict=True):
        low, high = lists.edge_ptr[draft.index], lists.edge_ptr[draft.index + 1]
        shift = np.repeat(lists.recv_ptr[:-1], np.diff(lists.edge_ptr))
        index = np.empty(len(lists.columns), np.int64)
        for part_of_edges in (slice(0, low), slice(high, None)):
            index[part_of_edges] = halo[(shift + lists.columns)[part_of_edges]]
        index[low:high] = lists.columns[low:high]
        sources.append(index)
        destinations.append(np.repeat(lists.rows, lists.counts).astype(np.int64))
    counts = [np.diff(lists.edge_ptr) for lists in in_edges]
    row, arrived = between_parts(comm, num_parts, sources, counts, _INT64)
    target, _ = between_parts(comm, num_parts, destinations, counts, _INT64)
    columns: list[Columns] = [{} for _ in drafts]
    for name in _EDGE_COLUMNS:
        template = agree(comm, {name: getattr(in_edges[0], name) if in_edges else None})
        if name not in template:
            continue
        values = [getattr(lists, name) for lists in in_edges]
        moved, _ = between_parts(comm, num_parts, values, counts, template[name][:0])
        for one, column in zip(columns, moved, strict=True):
            one[name] = column

    result, halos = [], []
    for k, draft in enumerate(drafts):
        peer = np.repeat(np.arange(num_parts), arrived[k])
        stride = int(target[k].max(initial=0)) + 1
        table, source = distinct(peer * stride + target[k], num_parts * stride)
        peer, index = table // stride, table % stride
        result.append(
            assemble_blocks(
                draft.index, num_parts, len(draft.ids), row[k], source, peer, index, columns[k]
            )
        )
        halos.append(index[peer != draft.index])
    return with_send_lists(comm, num_parts, result, halos)


def _numbers(comm: Communicator, num_parts: int, parts: list[Part], symmetric: bool) -> Numbers:
    mine = []
    for part in parts:
        lists, split = part.in_edges, part.nodes.split
        inside = int(lists.edge_ptr[part.index + 1] - lists.edge_ptr[part.index])
        mine.append(
            {
                "nodes": len(part.ids),
                "edges": len(lists.columns),
                "cut": len(lists.columns) - inside,
                "halo": int(lists.recv_ptr[-1]),
                "sent": int(lists.send_ptr[-1]),
                "train": 0 if split is None else int((split[:, 0] == 1).sum()),
            }
        )
    gathered = comm.allgather(mine)
    every = [gathered[p % comm.size][p // comm.size] for p in range(num_parts)]
    counts = {name: np.array([row[name] for row in every], np.int64) for name in every[0]}
    return Numbers(**counts, symmetric=symmetric)
