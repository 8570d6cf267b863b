"""The order of the nodes in a part, and its edges as blocks with receive and send lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.layout.clusters import order_by_cluster
from hpcgnn.partition.layout.columns import Columns, agree, edge_columns
from hpcgnn.partition.layout.nearness import Adjacency, reverse_cuthill_mckee
from hpcgnn.partition.routing import (
    ROWS,
    Array,
    Int64,
    between_parts,
    edge_positions,
    group_by,
    pointers,
    positions,
    row_windows,
    sort_columns,
)
from hpcgnn.storage.fingerprint import mix64
from hpcgnn.storage.read.graph_file import GraphSlab
from hpcgnn.storage.read.partition_file import EdgeLists

INT32_LIMIT = np.iinfo(np.int32).max
_INT32 = np.empty(0, np.int32)
CARRIED = ("weight", "relation", "features")  # used by messages, in both directions
EDGE_COLUMNS = (*CARRIED, "labels", "split")


def local_order(adjacency: Adjacency, sent: Array, *, symmetric: bool) -> Int64:
    """Return the old local indices in their new order: int64 `[n]`.

    Nodes that no other part reads come first. Within each of the two groups, neighbours lie near
    each other, and nodes with the same neighbours nearest.

    Args:
        adjacency: the edges inside the part, as old local indices.
        sent: `[n]`, whether another part needs the node.
        symmetric: whether the reverse of every edge is present; the order is then the same without
            the cost of a second graph with the reverses.
    """
    near = np.arange(len(sent))
    if len(adjacency.neighbour):
        visit = reverse_cuthill_mckee(adjacency if symmetric else adjacency.both_ways())
        near = order_by_cluster(adjacency, visit)
    return near[np.argsort(sent[near], kind="stable")]


@dataclass(frozen=True)
class SourceTable:
    """The table of the sources of a part's edges, in the order of old local indices.

    Attributes:
        peer: `[U]`, the part that owns each source.
        index: int32 `[U]`, its local index there.
        rank: int32 `[U]`, its position in the order by peer, then index.
    """

    peer: Array
    index: Array
    rank: Array


def assemble_blocks(
    part: int,
    num_parts: int,
    order: Int64,
    indptr: Int64,
    source: Array,
    table: SourceTable,
    keep: bool,
) -> EdgeLists:
    """Sort the edges of one part into blocks, without their attributes and send lists.

    Edges with the same ends keep their order.

    Args:
        order: `[n]`, the old local indices in their final order.
        indptr, source: the edges by old local index, as positions in `table`. With `keep`, the
            position of each edge in its final place is written into `source`.

    Raises:
        InputError: a count exceeds 32 bits.
    """
    sorted_peer = np.empty(len(table.peer), np.uint16 if num_parts <= 2**16 else np.uint32)
    column = np.empty(len(table.peer), np.int32)
    sorted_peer[table.rank] = table.peer
    first_source = np.searchsorted(sorted_peer, np.arange(num_parts + 1))
    halo = np.diff(first_source)
    halo[part] = 0
    final = pointers(np.diff(indptr)[order])
    most = int(np.diff(final).max(initial=0))
    if max(len(order), int(halo.max(initial=0)), most) > INT32_LIMIT:
        raise InputError(
            f"part {part} of {num_parts} has more than {INT32_LIMIT} rows: use more parts"
        )
    column[table.rank] = np.where(
        table.peer == part, table.index, table.rank - first_source[table.peer]
    )
    edge_ptr = _edges_by_peer(source, table.peer, num_parts)
    columns, cursor = np.empty(len(source), np.int32), edge_ptr[:-1].copy()
    rows = _RowLists(num_parts)
    for low, high in row_windows(final):
        at = edge_positions(indptr, order[low:high])
        ends = final[low : high + 1] - final[low]
        ranked, came = sort_columns(ends, table.rank[source[at]])
        peer = sorted_peer[ranked]
        by_peer = np.argsort(peer, kind="stable")  # with 16 bits a radix sort
        peer = peer[by_peer]
        counts = np.bincount(peer, minlength=num_parts)
        place = np.repeat(cursor - pointers(counts)[:-1], counts) + np.arange(len(peer))
        cursor += counts
        columns[place] = column[ranked[by_peer]]
        if keep:
            source[at[came[by_peer]]] = place
        row = np.repeat(np.arange(low, high, dtype=np.int32), np.diff(ends))
        rows.add(peer, row[by_peer])
    row_ptr, row_list, count_list = rows.joined()
    return EdgeLists(
        edge_ptr=edge_ptr,
        row_ptr=row_ptr,
        rows=row_list,
        counts=count_list,
        columns=columns,
        weight=None,
        relation=None,
        features=None,
        recv_ptr=pointers(halo),
        send_ptr=np.zeros(num_parts + 1, np.int64),
        send_rows=np.empty(0, np.int32),
    )


def _edges_by_peer(source: Array, peer: Array, num_parts: int) -> Int64:
    counts = np.zeros(num_parts, np.int64)
    for low in range(0, len(source), ROWS):
        counts += np.bincount(peer[source[low : low + ROWS]], minlength=num_parts)
    return pointers(counts)


class _RowLists:
    """The rows of each block with the number of their edges, collected by windows of rows."""

    def __init__(self, num_parts: int) -> None:
        self._counts = np.zeros(num_parts, np.int64)
        self._pieces: list[tuple[Array, Array, Array]] = []

    def add(self, peer: Array, row: Array) -> None:
        """Add edges by ascending peer and row; later calls bring later rows."""
        new = np.ones(len(peer), bool)
        new[1:] = (peer[1:] != peer[:-1]) | (row[1:] != row[:-1])
        first = np.flatnonzero(new)
        edges = np.diff(np.append(first, len(peer))).astype(np.int32)
        counts = np.bincount(peer[first], minlength=len(self._counts))
        self._counts += counts
        self._pieces.append((counts, row[first], edges))

    def joined(self) -> tuple[Int64, Array, Array]:
        """Return row_ptr, rows and counts; what was added is freed."""
        row_ptr = pointers(self._counts)
        rows, edges = np.empty((2, int(row_ptr[-1])), np.int32)
        cursor = row_ptr[:-1].copy()
        self._pieces.reverse()
        while self._pieces:
            counts, row, count = self._pieces.pop()
            place = np.repeat(cursor - pointers(counts)[:-1], counts) + np.arange(len(row))
            rows[place], edges[place] = row, count
            cursor += counts
        return row_ptr, rows, edges


def settle_ties(lists: EdgeLists) -> None:
    """Sort edges with the same ends by relation, weight, then features, in place."""
    given = {name: getattr(lists, name) for name in EDGE_COLUMNS}
    columns = {name: values for name, values in given.items() if values is not None}
    starts = pointers(lists.counts)
    for low, high in row_windows(starts):
        edges = slice(int(starts[low]), int(starts[high]))
        tied, order = _ties(
            starts[low + 1 : high + 1] - edges.start,
            lists.columns[edges],
            {name: values[edges] for name, values in columns.items()},
        )
        for values in columns.values():
            values[edges][tied] = values[edges][order]


def _ties(ends: Int64, column: Array, columns: Columns) -> tuple[Int64, Int64]:
    """Return the edges of some rows whose ends are not theirs alone, as they are and sorted."""
    again = np.zeros(len(column) + 1, bool)  # whether the ends are those of the edge before
    np.equal(column[1:], column[:-1], out=again[1:-1])
    again[ends] = False
    tied = np.flatnonzero(again[:-1] | again[1:])
    keys: list[Array] = []
    if "features" in columns:
        features = columns["features"][tied]
        keys = [features[:, k] for k in reversed(range(features.shape[1]))]
    keys += [columns[name][tied] for name in ("weight", "relation") if name in columns]
    return tied, tied[np.lexsort((*keys, np.cumsum(~again[tied])))]


def with_send_lists(
    comm: Communicator,
    num_parts: int,
    lists: Sequence[EdgeLists],
    halo_indices: Sequence[Array],
) -> list[EdgeLists]:
    """Return `lists` with send lists, from an exchange of the rows that each part reads.

    `halo_indices[k]`: int32, local indices, at their owners, of the halo rows of this rank's k-th
    part, in the order of its receive lists.
    """
    wanted = [
        np.split(indices, one.recv_ptr[1:-1])
        for one, indices in zip(lists, halo_indices, strict=True)
    ]
    arrived = between_parts(comm, num_parts, wanted, np.empty(0, np.int32))
    return [
        replace(
            one,
            send_ptr=pointers(np.array([len(chunk) for chunk in chunks])),
            send_rows=np.concatenate(chunks),
        )
        for one, chunks in zip(lists, arrived, strict=True)
    ]


def reversed_blocks(
    comm: Communicator, num_parts: int, parts: Sequence[int], in_lists: Sequence[EdgeLists]
) -> list[EdgeLists]:
    """Return the out-edges of this rank's `parts`, whose in-edges are `in_lists`. Collective.

    Each block of in-edges is sent to the part that its sources are in, which transposes it.
    """

    def exchange(name: str, ptr: str, template: Array) -> list[list[Array]]:
        pieces = [np.split(getattr(one, name), getattr(one, ptr)[1:-1]) for one in in_lists]
        return between_parts(comm, num_parts, pieces, template)

    forms = agree(comm, {name: getattr(one, name) for one in in_lists[:1] for name in CARRIED})
    rows = exchange("rows", "row_ptr", _INT32)
    counts = exchange("counts", "row_ptr", _INT32)
    columns = exchange("columns", "edge_ptr", _INT32)
    found, orders = [], []
    for k, one in enumerate(in_lists):
        lists, block_orders = _transposed(
            parts[k], one, rows[k], counts[k], columns[k], keep=bool(forms)
        )
        found.append(lists)
        orders.append(block_orders)
    del rows, counts, columns
    for name, form in forms.items():
        values = exchange(name, "edge_ptr", form[:0])
        for k, made in enumerate(found):
            out = np.empty((len(made.columns), *form.shape[1:]), form.dtype)
            for q, order in enumerate(orders[k]):
                _take(values[k][q], order, out[made.edge_ptr[q] : made.edge_ptr[q + 1]])
                values[k][q] = form[:0]
            setattr(made, name, out)
        del values
    return found


def _transposed(
    part: int,
    own: EdgeLists,
    rows: list[Array],
    counts: list[Array],
    columns: list[Array],
    *,
    keep: bool,
) -> tuple[EdgeLists, list[Array]]:
    """Return the out-edges of a part, and in each block the edges that came, in their new order.

    Args:
        rows, counts, columns: entry q is that of part q's in-edges from this one; `columns` are
            freed. A block's columns are positions in the list of rows sent there, so each of these
            rows has an edge.
        keep: return the orders.
    """
    edge_ptr = pointers(np.array([len(column) for column in columns]))
    out = np.empty(int(edge_ptr[-1]), np.int32)
    row_lists, count_lists, orders = [], [], []
    received = np.array([len(one) for one in rows])
    for q in range(len(columns)):
        column, columns[q] = columns[q], _INT32
        sent = own.send_rows[own.send_ptr[q] : own.send_ptr[q + 1]]
        ends: Array = positions(len(rows[q])).astype(np.int32)
        if q == part:
            ends = rows[q]
            sent = np.arange(int(column.max(initial=-1)) + 1, dtype=np.int32)
            received[q] = 0
        starts, order = group_by(column, len(sent))
        del column
        _take(np.repeat(ends, counts[q]), order, out[edge_ptr[q] : edge_ptr[q + 1]])
        count = np.diff(starts)
        row_lists.append(sent[count > 0])
        count_lists.append(count[count > 0].astype(np.int32))
        if keep:
            orders.append(order)
    between = np.diff(own.row_ptr)
    between[part] = 0
    others = [own.rows[: own.row_ptr[part]], own.rows[own.row_ptr[part + 1] :]]
    lists = EdgeLists(
        edge_ptr=edge_ptr,
        row_ptr=pointers(np.array([len(one) for one in row_lists])),
        rows=np.concatenate(row_lists),
        counts=np.concatenate(count_lists),
        columns=out,
        weight=None,
        relation=None,
        features=None,
        recv_ptr=pointers(received),
        send_ptr=pointers(between),
        send_rows=np.concatenate(others),
    )
    return lists, orders


def _take(values: Array, order: Array, out: Array) -> None:
    """Store `values[order]` in `out`, by windows: NumPy would copy the whole order as int64."""
    for low in range(0, len(order), ROWS):
        out[low : low + ROWS] = values[order[low : low + ROWS]]


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


def asymmetry(slab: GraphSlab) -> int:
    """Return what the edges of some rows add to a sum that is 0 if the graph is symmetric.

    It is the difference of two sums of 64-bit hashes, of (source, destination) and of the reverse,
    modulo 2^64. Another sum than 0 proves that the graph is not symmetric; that of a graph that is
    not symmetric is 0 with a probability of 2^-64.
    """
    difference, indptr = np.zeros(1, np.uint64), slab.indptr
    columns = {
        name: column
        for name, column in edge_columns(slab).items()
        if name in CARRIED and column is not None
    }
    for first, last in row_windows(indptr):
        a, b = int(indptr[first]), int(indptr[last])
        if a == b:
            continue
        degree = np.diff(indptr[first : last + 1])
        source = _mix(slab.indices[a:b])
        destination = np.repeat(_mix(np.arange(slab.lo + first, slab.lo + last)), degree)
        attributes = _attribute_hash(columns, a, b)
        three = np.uint64(3)
        difference += _mix(source + three * destination + attributes).sum(dtype=np.uint64)
        difference -= _mix(destination + three * source + attributes).sum(dtype=np.uint64)
    return int(difference[0])
