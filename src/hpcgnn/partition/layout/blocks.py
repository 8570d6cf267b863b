"""The order of the nodes in a part, and its edges as blocks with receive and send lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.layout.clusters import order_by_cluster
from hpcgnn.partition.layout.columns import Columns
from hpcgnn.partition.layout.nearness import Adjacency, reverse_cuthill_mckee
from hpcgnn.partition.routing import Array, Int64, between_parts, group_by, pointers, sort_columns
from hpcgnn.storage.fingerprint import mix64
from hpcgnn.storage.read.partition_file import EdgeLists

INT32_LIMIT = np.iinfo(np.int32).max
_CHUNK = 1 << 18


def local_order(
    num_nodes: int, rows: Array, columns: Array, sent: Array, *, symmetric: bool
) -> Int64:
    """Return the old local indices in their new order: int64 `[n]`.

    Nodes that no other part reads come first. Within each of the two groups, neighbours lie near
    each other, and nodes with the same neighbours nearest.

    Args:
        rows, columns: the edges inside the part, as old local indices.
        sent: `[n]`, whether another part needs the node.
        symmetric: whether the reverse of every edge is present; the order is then the same without
            the cost of a second graph with the reverses.
    """
    near = np.arange(num_nodes)
    if len(rows):
        adjacency = Adjacency.of(num_nodes, rows, columns)
        whole = adjacency if symmetric else Adjacency.both_ways(num_nodes, rows, columns)
        near = order_by_cluster(adjacency, reverse_cuthill_mckee(whole))
    return near[np.argsort(sent[near], kind="stable")]


def _edge_order(
    row: Array, source: Array, peer: Int64, num_rows: int, num_parts: int, columns: Columns
) -> Array:
    """Return the order of edges by peer, row, source, then relation, weight, features: `[E]`."""
    indptr, by_row = group_by(row, num_rows)
    sorted_source, place = sort_columns(indptr, source[by_row])
    order = by_row[place]
    del by_row, place
    if columns:
        _settle_ties(order, row[order], sorted_source, columns)
    if num_parts == 1:
        return order
    # With 16 bits this is a radix sort.
    return order[np.argsort(_narrow(peer, num_parts)[sorted_source], kind="stable")]


def _narrow(peer: Int64, num_parts: int) -> Array:
    return peer.astype(np.uint16 if num_parts <= 2**16 else np.uint32)


def _settle_ties(order: Array, row: Array, source: Array, columns: Columns) -> None:
    """Sort edges with the same ends by their attributes, in place."""
    first = _changes(row, source)
    again = ~first
    tied = np.flatnonzero(again | np.append(again[1:], False))
    if not len(tied):
        return
    edges = order[tied]
    keys: list[Array] = []
    if "features" in columns:
        features = columns["features"][edges]
        keys = [features[:, k] for k in reversed(range(features.shape[1]))]
    keys += [columns[name][edges] for name in ("weight", "relation") if name in columns]
    order[tied] = edges[np.lexsort((*keys, np.cumsum(first)[tied]))]


def _changes(*keys: Array) -> Array:
    """Return where an element differs from the one before, True at the first: bool."""
    result = np.ones(len(keys[0]), bool)
    result[1:] = False
    for key in keys:
        result[1:] |= key[1:] != key[:-1]
    return result


def assemble_blocks(
    part: int,
    num_parts: int,
    num_rows: int,
    row: Array,
    source: Array,
    peer: Int64,
    index: Int64,
    columns: Columns,
) -> EdgeLists:
    """Sort the edges of one part into blocks. The send lists stay empty: see `with_send_lists`.

    Args:
        row: `[E]`, local destinations.
        source: `[E]`, positions in the table of sources.
        peer, index: the table, sorted: the part that owns each source and its local index there.
        columns: weight, relation, features, labels, split of the edges.

    Raises:
        InputError: a count exceeds 32 bits.
    """
    first_source = np.searchsorted(peer, np.arange(num_parts + 1))
    halo = np.diff(first_source)
    halo[part] = 0
    order = _edge_order(row, source, peer, num_rows, num_parts, columns)
    row, source = row[order], source[order]
    edge_peer = _narrow(peer, num_parts)[source]
    first = np.flatnonzero(_changes(edge_peer, row))
    counts = np.diff(np.append(first, len(row)))
    if max(num_rows, halo.max(initial=0), counts.max(initial=0)) > INT32_LIMIT:
        raise InputError(
            f"part {part} of {num_parts} has more than {INT32_LIMIT} rows: use more parts"
        )
    column = np.where(peer == part, index, np.arange(len(peer)) - first_source[peer])
    bounds = np.arange(num_parts + 1)
    return EdgeLists(
        edge_ptr=np.searchsorted(edge_peer, bounds).astype(np.int64),
        row_ptr=np.searchsorted(edge_peer[first], bounds).astype(np.int64),
        rows=row[first].astype(np.int32, copy=False),
        counts=counts.astype(np.int32),
        columns=column.astype(np.int32)[source],
        weight=columns["weight"][order] if "weight" in columns else None,
        relation=columns["relation"][order] if "relation" in columns else None,
        features=columns["features"][order] if "features" in columns else None,
        recv_ptr=pointers(halo),
        send_ptr=np.zeros(num_parts + 1, np.int64),
        send_rows=np.empty(0, np.int32),
        labels=columns["labels"][order] if "labels" in columns else None,
        split=columns["split"][order] if "split" in columns else None,
    )


def with_send_lists(
    comm: Communicator,
    num_parts: int,
    lists: Sequence[EdgeLists],
    halo_indices: Sequence[Array],
) -> list[EdgeLists]:
    """Return `lists` with send lists, from an exchange of the rows that each part reads.

    `halo_indices[k]`: local indices, at their owners, of the halo rows of this rank's k-th part, in
    the order of its receive lists.
    """
    wanted = [np.asarray(indices, np.int32) for indices in halo_indices]
    counts = [np.diff(one.recv_ptr) for one in lists]
    rows, arrived = between_parts(comm, num_parts, wanted, counts, np.empty(0, np.int32))
    return [
        replace(one, send_ptr=pointers(count), send_rows=row)
        for one, row, count in zip(lists, rows, arrived, strict=True)
    ]


def _mix(values: Array) -> Array:
    mixed = values.astype(np.uint64)
    mix64(mixed)
    return mixed


def _attribute_hash(columns: Columns, low: int, high: int) -> Array:
    """Return a hash of the attributes of each edge: uint64."""
    total = np.zeros(high - low, np.uint64)
    for name in sorted(columns):
        values = columns[name][low:high].reshape(high - low, -1)
        if values.dtype.kind == "f":
            values = (values + np.zeros(1, values.dtype)).view(f"u{values.dtype.itemsize}")
        for k in range(values.shape[1]):
            total = _mix(total + _mix(values[:, k].astype(np.uint64)))
    return total


def is_symmetric(
    comm: Communicator, low: int, indptr: Array, sources: Array, columns: Columns
) -> bool:
    """Return whether the graph is symmetric. Collective.

    Two 64-bit sums of hashes over all edges are compared, of (source, destination) and of the
    reverse. Unequal sums prove that the graph is not symmetric; the sums of a graph that is not
    symmetric are equal with a probability of 2^-64.
    """
    difference = np.zeros(1, np.uint64)
    destinations = np.repeat(np.arange(low, low + len(indptr) - 1), np.diff(indptr))
    for a in range(0, len(sources), _CHUNK):
        b = min(a + _CHUNK, len(sources))
        source, destination = _mix(sources[a:b]), _mix(destinations[a:b])
        attributes = _attribute_hash(columns, a, b)
        three = np.uint64(3)
        difference += _mix(source + three * destination + attributes).sum(dtype=np.uint64)
        difference -= _mix(destination + three * source + attributes).sum(dtype=np.uint64)
    return sum(comm.allgather(int(difference[0]))) % 2**64 == 0
