"""The edge lists of one part: blocks by peer, rows, columns, receive and send lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.columns import Columns
from hpcgnn.partition.exchange import Array, Int64, between_parts, pointers
from hpcgnn.storage.partition_file import EdgeLists

INT32_LIMIT = np.iinfo(np.int32).max


def _edge_order(row: Int64, source: Int64, peer: Int64, num_rows: int, columns: Columns) -> Int64:
    """Edges by peer, row, source; equal ones by relation, weight, features: int64 [E]."""
    block_row = peer[source] * num_rows + row
    if (int(block_row.max(initial=0)) + 1) * len(peer) < 2**63:
        order = np.argsort(block_row * len(peer) + source, kind="stable")
    else:
        order = np.lexsort((source, block_row))
    if not columns:
        return order
    first = _changes(block_row[order], source[order])
    again = ~first
    tied = np.flatnonzero(again | np.append(again[1:], False))
    if len(tied):
        edges = order[tied]
        keys: list[Array] = []
        if "features" in columns:
            features = columns["features"][edges]
            keys = [features[:, k] for k in reversed(range(features.shape[1]))]
        keys += [columns[name][edges] for name in ("weight", "relation") if name in columns]
        order[tied] = edges[np.lexsort((*keys, np.cumsum(first)[tied]))]
    return order


def _changes(*keys: Array) -> Array:
    """True where an element differs from the one before, and at the first: bool."""
    result = np.ones(len(keys[0]), bool)
    result[1:] = False
    for key in keys:
        result[1:] |= key[1:] != key[:-1]
    return result


def assemble_blocks(
    part: int,
    num_parts: int,
    num_rows: int,
    row: Int64,
    source: Int64,
    peer: Int64,
    index: Int64,
    columns: Columns,
) -> EdgeLists:
    """Sorts the edges of one part into blocks. The send lists stay empty: see `with_send_lists`.

    Args:
        row: `[E]`, local destination.
        source: `[E]`, position in the table of sources.
        peer, index: the table, sorted: the part each source lives in and its local index there.
        columns: weight, relation, features of the edges.

    Raises:
        InputError: a count that 32 bits can't hold.
    """
    first_source = np.searchsorted(peer, np.arange(num_parts + 1))
    halo = np.diff(first_source)
    halo[part] = 0
    order = _edge_order(row, source, peer, num_rows, columns)
    row, source = row[order], source[order]
    edge_peer = peer[source]
    first = np.flatnonzero(_changes(edge_peer, row))
    counts = np.diff(np.append(first, len(row)))
    if max(num_rows, halo.max(initial=0), counts.max(initial=0)) > INT32_LIMIT:
        raise InputError(f"part {part} of {num_parts} has over {INT32_LIMIT} rows: use more parts")
    position = np.where(edge_peer == part, index[source], source - first_source[edge_peer])
    return EdgeLists(
        edge_ptr=np.searchsorted(edge_peer, np.arange(num_parts + 1)).astype(np.int64),
        row_ptr=np.searchsorted(edge_peer[first], np.arange(num_parts + 1)).astype(np.int64),
        rows=row[first].astype(np.int32),
        counts=counts.astype(np.int32),
        columns=position.astype(np.int32),
        weight=columns["weight"][order] if "weight" in columns else None,
        relation=columns["relation"][order] if "relation" in columns else None,
        features=columns["features"][order] if "features" in columns else None,
        recv_ptr=pointers(halo),
        send_ptr=np.zeros(num_parts + 1, np.int64),
        send_rows=np.empty(0, np.int32),
    )


def with_send_lists(
    comm: Communicator,
    num_parts: int,
    lists: Sequence[EdgeLists],
    halo_indices: Sequence[Array],
) -> list[EdgeLists]:
    """Tells every peer which of its rows are read here, and fills in what the peers tell.

    `halo_indices[k]`: local indices at their owners of the halo rows of this rank's k-th part, in
    the order of its receive lists.
    """
    wanted = [np.asarray(indices, np.int32) for indices in halo_indices]
    counts = [np.diff(one.recv_ptr) for one in lists]
    rows, arrived = between_parts(comm, num_parts, wanted, counts, np.empty(0, np.int32))
    return [
        replace(one, send_ptr=pointers(count), send_rows=row)
        for one, row, count in zip(lists, rows, arrived, strict=True)
    ]
