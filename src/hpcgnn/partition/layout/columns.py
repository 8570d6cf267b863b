"""Optional arrays that have the same form on all ranks, and their way from slabs to parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.edges import window_bounds
from hpcgnn.partition.layout.sources import SlabSource
from hpcgnn.partition.routing import (
    Array,
    Int64,
    Parcel,
    Route,
    edge_positions,
    group_by,
    pointers,
    positions,
)
from hpcgnn.storage.read.graph_file import GraphSlab
from hpcgnn.storage.read.nodes import CsrRows, NodeData

Columns = dict[str, Array]
_PLAIN = ("labels", "split", "type", "original_ids")
_WINDOW_BYTES = 4 << 20
EDGES = 1 << 17  # of a window that is exchanged


@dataclass
class ArrivedEdges:
    """The edges of this rank's parts, one part after another, by rows in ascending order.

    Attributes:
        slot: `[n]`, the row of each node that arrives on this rank.
        indptr: int64 `[n + 1]`.
        source: `[E]`, a number for each edge, which changes while the parts are assembled.
    """

    slot: Array
    indptr: Int64
    source: Array


def agree(comm: Communicator, columns: Mapping[str, Array | None]) -> Columns:
    """Return the columns that any rank has; a rank without one gets an empty one of that form.

    Raises:
        InputError: a column has different dtypes or trailing shapes on two ranks.
    """
    mine = {name: (a.dtype.str, a.shape[1:]) for name, a in columns.items() if a is not None}
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    for rank, theirs in enumerate(comm.allgather(mine)):
        for name, form in theirs.items():
            if forms.setdefault(name, form) != form:
                raise InputError(f"{name} is {form} here, {forms[name]} elsewhere", rank=rank)
    result = {}
    for name in sorted(forms):
        dtype, trailing = forms[name]
        column = columns.get(name)
        result[name] = np.empty((0, *trailing), dtype) if column is None else column
    return result


def edge_columns(slab: GraphSlab) -> dict[str, Array | None]:
    """Return the attributes of a slab's edges, by their names in a part."""
    return {
        "weight": slab.weight,
        "relation": slab.relation,
        "features": slab.edge_features,
        "labels": slab.edge_labels,
        "split": slab.edge_split,
    }


def node_columns(nodes: NodeData) -> dict[str, Array | None]:
    """Return the arrays of `nodes` by name; those of sparse features without row pointers."""
    columns: dict[str, Array | None] = {name: getattr(nodes, name) for name in _PLAIN}
    features = nodes.features
    if isinstance(features, CsrRows):
        columns["sparse/indices"] = features.indices
        columns["sparse/data"] = features.data
    else:
        columns["features"] = features
    for kind, rows in (nodes.typed_features or {}).items():
        columns[f"typed/{kind}"] = rows
    for name, values in nodes.named.items():
        columns[f"named/{name}"] = values
    return columns


def placed_edges(
    comm: Communicator, route: Route, source: SlabSource, forms: Columns, edges: ArrivedEdges
) -> Columns:
    """Return the edge attributes of this rank's parts, one part after another. Collective.

    All is read, received and written to its final place a window at a time. `edges.source` holds
    the final place of each edge.
    """
    columns = {
        name: np.empty((len(edges.source), *form.shape[1:]), form.dtype)
        for name, form in forms.items()
    }
    for parcel in route.parcels(window_bounds(comm, source.indptr, most=EDGES)):
        with agreed(comm, "read the edges"):
            slab = source.edges(source.lo + parcel.low, source.lo + parcel.high)
        at = edges.source[edge_positions(edges.indptr, edges.slot[parcel.arrived])]
        found = edge_columns(slab)
        for name, form in forms.items():
            column = found[name]
            columns[name][at] = parcel.ragged(slab.indptr, form[:0] if column is None else column)
    return columns


class PlacedNodes:
    """The node data of this rank's parts, one part after another, in final order. Collective.

    All is read, received and written to its final place a window of rows at a time: a rank holds
    the data of its parts once, and a window.

    Args:
        final: `[n]`, the final place of each row that arrives on this rank.
    """

    def __init__(self, comm: Communicator, route: Route, source: SlabSource, final: Array) -> None:
        self._comm, self._route, self._source, self._final = comm, route, source, final
        with agreed(comm, "read the nodes"):
            empty = source.nodes(source.lo, source.lo)
        self._forms = agree(comm, node_columns(empty))
        width = empty.features.width if isinstance(empty.features, CsrRows) else 0
        self._width = comm.allreduce(width, op="max")
        row_bytes = comm.allreduce(float(source.node_bytes()), op="max")
        rows = max(1, int(_WINDOW_BYTES / max(row_bytes, 16)))
        self._bounds = window_bounds(comm, np.zeros(source.hi - source.lo + 1, np.int64), most=rows)
        self._types = self._head("type", source.types)
        self.indptr = pointers(self._head("sparse/data", source.sparse_counts))
        starts, order = group_by(self._types, int(self._types.max(initial=-1)) + 1)
        self._of_type = np.empty_like(order)  # the place of each node among those of its type
        self._of_type[order] = positions(len(order))
        self._of_type -= starts[self._types].astype(order.dtype)
        del order
        self.columns = {name: self._room(name, form) for name, form in self._forms.items()}
        for parcel in route.parcels(self._bounds):
            self._receive(parcel)

    def _head(self, column: str, read: Callable[[int, int], Array | None]) -> Array:
        """Return `read` of this rank's nodes in final order, nothing if there is no `column`."""
        if column not in self._forms:
            return np.empty(0, np.int32)
        found = np.empty(len(self._final), np.int32)
        for parcel in self._route.parcels(self._bounds):
            with agreed(self._comm, "read the nodes"):
                values = read(self._source.lo + parcel.low, self._source.lo + parcel.high)
            sent = np.zeros(0, np.int32) if values is None else values.astype(np.int32)
            found[self._final[parcel.arrived]] = parcel.rows(sent)
        return found

    def _room(self, name: str, form: Array) -> Array:
        """Return an array for a column of this rank's nodes."""
        rows = len(self._final)
        if name.startswith("sparse/"):
            rows = int(self.indptr[-1])
        elif name.startswith("typed/"):
            rows = int(np.count_nonzero(self._types == int(name.removeprefix("typed/"))))
        return np.empty((rows, *form.shape[1:]), form.dtype)

    def _receive(self, parcel: Parcel) -> None:
        """Read a window of rows, exchange it, and put what arrives into its final place."""
        source = self._source
        low, high = source.lo + parcel.low, source.lo + parcel.high
        with agreed(self._comm, "read the nodes"):
            nodes = source.nodes(low, high)
        given = node_columns(nodes)
        place = self._final[parcel.arrived]
        features = nodes.features
        for name, form in self._forms.items():
            column = given.get(name)
            column = form[:0] if column is None else column
            if name.startswith("sparse/"):
                indptr = np.zeros(high - low + 1, np.int64)
                if isinstance(features, CsrRows):
                    indptr = features.indptr
                at: Array = edge_positions(self.indptr, place)
                self.columns[name][at] = parcel.ragged(indptr, column)
            elif name.startswith("typed/"):
                kind = int(name.removeprefix("typed/"))
                types = np.empty(0, np.int32) if nodes.type is None else nodes.type
                at = self._of_type[place[self._types[place] == kind]]
                self.columns[name][at] = parcel.ragged(pointers(types == kind), column)
            else:
                self.columns[name][place] = parcel.rows(column)

    def take(self, low: int, high: int) -> NodeData:
        """Return the nodes in places `low .. high - 1`."""
        plain = {
            name: self.columns[name][low:high] if name in self.columns else None for name in _PLAIN
        }
        features: Array | CsrRows | None = None
        if "sparse/data" in self.columns:
            first, last = int(self.indptr[low]), int(self.indptr[high])
            features = CsrRows(
                indptr=self.indptr[low : high + 1] - first,
                indices=self.columns["sparse/indices"][first:last],
                data=self.columns["sparse/data"][first:last],
                width=self._width,
            )
        elif "features" in self.columns:
            features = self.columns["features"][low:high]
        typed, named = {}, {}
        for name, column in self.columns.items():
            group, _, rest = name.partition("/")
            if group == "named":
                named[rest] = column[low:high]
            elif group == "typed":
                first, last = (
                    int(np.count_nonzero(self._types[:end] == int(rest))) for end in (low, high)
                )
                typed[int(rest)] = column[first:last]
        return NodeData(features=features, typed_features=typed, named=named, **plain)
