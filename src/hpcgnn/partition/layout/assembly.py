"""Assembly of parts from slabs of a graph and an owner per node.

All data is exchanged between ranks, a window at a time: a rank never holds more than its own parts,
once, and a few windows.

    parts, numbers = layout.build(comm, source, owner, num_parts, num_nodes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.edges import window_bounds
from hpcgnn.partition.layout.blocks import (
    SourceTable,
    assemble_blocks,
    asymmetry,
    local_order,
    reversed_blocks,
    settle_ties,
    with_send_lists,
)
from hpcgnn.partition.layout.columns import (
    EDGES,
    ArrivedEdges,
    Columns,
    PlacedNodes,
    agree,
    edge_columns,
    placed_edges,
)
from hpcgnn.partition.layout.nearness import Adjacency
from hpcgnn.partition.layout.sources import SlabSource
from hpcgnn.partition.quality import Numbers
from hpcgnn.partition.routing import (
    Array,
    Int64,
    Route,
    Slabs,
    between_parts,
    edge_positions,
    group_by,
    local_parts,
    pointers,
    positions,
    positions_type,
    renumber,
)
from hpcgnn.sorting import sorted_unique
from hpcgnn.storage.read.partition_file import EdgeLists, Part

_INT64 = np.empty(0, np.int64)
_INT32 = np.empty(0, np.int32)


@dataclass
class _Draft:
    """A part during its assembly. Old local indices ascend with the node's id."""

    index: int
    ids: Int64  # [n] ascending, in the end in final order
    rows: slice  # its nodes among those of this rank's parts
    edges: slice  # its edges, likewise
    indptr: Int64  # [n + 1]
    source: Array  # [E] by old local destination: position in the table of sources
    source_ids: Int64 = field(default_factory=lambda: _INT64)  # [U] the table, ascending
    peer: Array = field(default_factory=lambda: _INT32)  # [U] the part of each source
    order: Int64 = field(default_factory=lambda: _INT64)  # [n] old local indices in final order
    position: Array = field(default_factory=lambda: _INT32)  # [n] its inverse


def build(
    comm: Communicator, source: SlabSource, owner: Array, num_parts: int, num_nodes: int
) -> tuple[list[Part], Numbers]:
    """Assemble the parts, part p on rank `p % comm.size`. Collective.

    Args:
        source: rows `lo .. hi - 1` of the graph; ranks have consecutive slabs that cover the graph,
            any may be empty.
        owner: the part of each row, integers `[hi - lo]` in `0 .. num_parts - 1`.

    Returns:
        The parts of this rank in ascending order, and the counts of all parts.

    Raises:
        InputError: the slabs don't cover the graph, a part is out of range, an array has the wrong
            length, what is read is damaged, or a part is too large for 32-bit local indices.
    """
    slabs = Slabs(comm, source.lo, source.hi, num_nodes)
    with agreed(comm, "layout"):
        source.check(num_nodes)
        _check(source, owner, num_parts)
        empty = source.edges(source.lo, source.lo)
    forms = agree(comm, edge_columns(empty))
    owner = np.asarray(owner, np.int32)
    route = Route(comm, owner)
    edges, drafts = _rows(comm, route, source, num_parts)
    symmetric = _collect(comm, route, source, edges, forms, num_nodes)
    _number_sources(edges, drafts, num_nodes)
    _find_owners(slabs, drafts, owner)
    in_edges = _in_edges(comm, num_parts, drafts, edges, symmetric, keep=bool(forms))
    if forms:
        for draft in drafts:
            draft.source += draft.source.dtype.type(draft.edges.start)
        _add_attributes(placed_edges(comm, route, source, forms, edges), drafts, in_edges)
    final = _final(drafts, edges)
    del edges
    for draft in drafts:
        draft.ids = draft.ids[draft.order]
        draft.source, draft.indptr, draft.order = _INT32, _INT64, _INT64
    out_edges: Sequence[EdgeLists | None] = [None] * len(drafts)
    if not symmetric:
        indices = [draft.index for draft in drafts]
        out_edges = reversed_blocks(comm, num_parts, indices, in_edges)
    nodes = PlacedNodes(comm, route, source, final)
    parts = [
        _finished(draft, nodes, num_parts, inward, outward)
        for draft, inward, outward in zip(drafts, in_edges, out_edges, strict=True)
    ]
    return parts, _numbers(comm, num_parts, parts, symmetric)


def _finished(
    draft: _Draft, nodes: PlacedNodes, num_parts: int, inward: EdgeLists, outward: EdgeLists | None
) -> Part:
    """Return the part with its node data, in the final order of the nodes."""
    data = nodes.take(draft.rows.start, draft.rows.stop)
    return Part(
        index=draft.index,
        num_parts=num_parts,
        ids=draft.ids,
        original_ids=data.original_ids,
        nodes=data,
        in_edges=inward,
        out_edges=outward,
    )


def _check(source: SlabSource, owner: Array, num_parts: int) -> None:
    rows = source.hi - source.lo
    if num_parts < 1:
        raise InputError("a partition needs at least one part", value=num_parts)
    if len(owner) != rows:
        raise InputError(f"{len(owner)} owners for {rows} rows")
    if rows and not 0 <= owner.min() <= owner.max() < num_parts:
        wrong = owner[(owner < 0) | (owner >= num_parts)][0]
        raise InputError(f"owner outside 0 .. {num_parts - 1}", value=int(wrong))


def _rows(
    comm: Communicator, route: Route, source: SlabSource, num_parts: int
) -> tuple[ArrivedEdges, list[_Draft]]:
    """Send the id, part and degree of each row to the rank that assembles its part."""
    part = np.empty(route.count, np.int32)
    even = np.zeros(source.hi - source.lo + 1, np.int64)
    bounds = window_bounds(comm, even, most=EDGES)
    for parcel in route.parcels(bounds):
        part[parcel.arrived] = parcel.rows(route.owner[parcel.low : parcel.high])
    first, order = group_by(part // comm.size, len(local_parts(comm, num_parts)))
    del part
    slot = np.empty_like(order)
    slot[order] = positions(len(order))
    del order
    ids, degree = np.empty(route.count, np.int64), np.empty(route.count, np.int64)
    for parcel in route.parcels(bounds):
        at = slot[parcel.arrived]
        ids[at] = parcel.rows(np.arange(source.lo + parcel.low, source.lo + parcel.high))
        degree[at] = parcel.rows(np.diff(source.indptr[parcel.low : parcel.high + 1]))
    edges = ArrivedEdges(slot, pointers(degree), _INT32)
    drafts = []
    for k, p in enumerate(local_parts(comm, num_parts)):
        rows = slice(int(first[k]), int(first[k + 1]))
        indptr = edges.indptr[rows.start : rows.stop + 1]
        between = slice(int(indptr[0]), int(indptr[-1]))
        drafts.append(_Draft(p, ids[rows], rows, between, indptr - indptr[0], _INT32))
    return edges, drafts


def _collect(
    comm: Communicator,
    route: Route,
    source: SlabSource,
    edges: ArrivedEdges,
    forms: Columns,
    num_nodes: int,
) -> bool:
    """Send the sources of each row's edges there too; return whether the graph is symmetric."""
    count = int(edges.indptr[-1])
    narrow = positions_type(max(num_nodes, count if forms else 0))
    edges.source = np.empty(count, narrow)
    difference = 0
    for parcel in route.parcels(window_bounds(comm, source.indptr, most=EDGES)):
        with agreed(comm, "read the edges"):
            slab = source.edges(source.lo + parcel.low, source.lo + parcel.high)
        difference += asymmetry(slab)
        at = edge_positions(edges.indptr, edges.slot[parcel.arrived])
        edges.source[at] = parcel.ragged(slab.indptr, slab.indices.astype(narrow, copy=False))
    return sum(comm.allgather(difference, where="partition: symmetry")) % 2**64 == 0


def _number_sources(edges: ArrivedEdges, drafts: list[_Draft], num_nodes: int) -> None:
    """Replace the source of each edge by its position in the part's table of sources."""
    for draft in drafts:
        draft.source = edges.source[draft.edges]
        draft.source_ids = renumber(draft.source, num_nodes)


def _find_owners(slabs: Slabs, drafts: list[_Draft], owner: Array) -> None:
    """Look up the part of every source on the ranks that hold the slabs."""
    if len(drafts) == 1:
        drafts[0].peer = slabs.lookup(drafts[0].source_ids, owner)
        return
    wanted = sorted_unique(np.concatenate([_INT64, *(draft.source_ids for draft in drafts)]))
    peers = slabs.lookup(wanted, owner)
    for draft in drafts:
        draft.peer = peers[np.searchsorted(wanted, draft.source_ids)]


def _in_edges(
    comm: Communicator,
    num_parts: int,
    drafts: list[_Draft],
    edges: ArrivedEdges,
    symmetric: bool,
    *,
    keep: bool,
) -> list[EdgeLists]:
    """Return the in-edges of each part without attributes.

    Each part is asked for the local indices of the rows that are read from it, and settles the
    order of its nodes before it answers. With `keep`, `source` becomes each edge's final place.
    """
    groups = [group_by(draft.peer, num_parts) for draft in drafts]
    asked = between_parts(
        comm,
        num_parts,
        [
            np.split(draft.source_ids[order], starts[1:-1])
            for draft, (starts, order) in zip(drafts, groups, strict=True)
        ],
        _INT64,
    )
    answers = []
    for draft, chunks in zip(drafts, asked, strict=True):
        local = [np.searchsorted(draft.ids, ids).astype(np.int32) for ids in chunks]
        chunks.clear()
        sent = np.zeros(len(draft.ids), bool)
        for peer, rows in enumerate(local):
            if peer != draft.index:
                sent[rows] = True
        _settle_order(draft, sent, symmetric)
        answers.append([draft.position[rows] for rows in local])
    answered = between_parts(comm, num_parts, answers, _INT32)
    del answers
    lists, halo_indices = [], []
    for draft, (_, order), chunks in zip(drafts, groups, answered, strict=True):
        table, halo = _ranked(draft, order, np.concatenate(chunks), num_parts)
        chunks.clear()
        halo_indices.append(halo)
        lists.append(
            assemble_blocks(
                draft.index, num_parts, draft.order, draft.indptr, draft.source, table, keep=keep
            )
        )
    return with_send_lists(comm, num_parts, lists, halo_indices)


def _settle_order(draft: _Draft, sent: Array, symmetric: bool) -> None:
    """Set the order of a draft's nodes, of which other parts read those in `sent`."""
    inside = draft.peer == draft.index
    old = np.full(len(draft.source_ids), -1, np.int32)
    old[inside] = np.searchsorted(draft.ids, draft.source_ids[inside])
    adjacency = Adjacency.of(draft.indptr, draft.source, old)
    draft.source_ids = _INT64
    draft.order = local_order(adjacency, sent, symmetric=symmetric)
    draft.position = np.empty(len(sent), np.int32)
    draft.position[draft.order] = positions(len(sent))


def _ranked(draft: _Draft, order: Array, index: Array, num_parts: int) -> tuple[SourceTable, Array]:
    """Return the table of a draft's sources, and the owners' local indices of its halo rows.

    `order`: the table by peer; `index`: the local index of each source in this order.
    """
    peer = draft.peer[order]
    final = np.lexsort((index, peer))
    ranks, indices = np.empty((2, len(order)), np.int32)
    ranks[order[final]] = positions(len(order))
    indices[order] = index
    index = index[final]
    return SourceTable(draft.peer, indices, ranks), index[peer[final] != draft.index]


def _final(drafts: list[_Draft], edges: ArrivedEdges) -> Array:
    """Return the final row of each node that arrived on this rank, one part after another."""
    rows = np.empty_like(edges.slot)
    for draft in drafts:
        rows[draft.rows] = draft.position
        rows[draft.rows] += rows.dtype.type(draft.rows.start)
        draft.position = _INT32
    return rows[edges.slot]


def _add_attributes(columns: Columns, drafts: list[_Draft], in_edges: list[EdgeLists]) -> None:
    for draft, lists in zip(drafts, in_edges, strict=True):
        for name, values in columns.items():
            setattr(lists, name, values[draft.edges])
        settle_ties(lists)


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
