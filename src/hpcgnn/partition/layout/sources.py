"""Where a rank's slab of a graph comes from: a file read in windows, or arrays held in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.partition.routing import Array, Int64
from hpcgnn.storage.read.graph_file import GraphFile, GraphSlab
from hpcgnn.storage.read.nodes import CsrRows, NodeData

_WHOLE = ("labels", "split", "type", "original_ids")


class SlabSource(Protocol):
    """Rows `lo .. hi - 1` of a graph, a range at a time; `indptr` int64 `[hi - lo + 1]`, from 0."""

    lo: int
    hi: int
    indptr: Int64

    def check(self, num_nodes: int) -> None:
        """Raise InputError if arrays don't fit each other, or a graph of `num_nodes` nodes."""

    def edges(self, low: int, high: int) -> GraphSlab:
        """Return the in-edges of rows `low .. high - 1`."""

    def nodes(self, low: int, high: int) -> NodeData:
        """Return the node data of rows `low .. high - 1`."""

    def types(self, low: int, high: int) -> Array | None:
        """Return the types of rows `low .. high - 1`, None if there are none."""

    def sparse_counts(self, low: int, high: int) -> Int64 | None:
        """Return the numbers of features stored for rows `low .. high - 1`, None if not sparse."""

    def node_bytes(self) -> float:
        """Return the mean bytes of a row of node data."""


class FileSource:
    """Rows `lo .. hi - 1` of an open graph file, every value checked when it is read."""

    def __init__(self, graph: GraphFile, lo: int, hi: int, indptr: Int64 | None = None) -> None:
        self.graph, self.lo, self.hi = graph, lo, hi
        self.indptr = graph.read_indptr(lo, hi) if indptr is None else indptr
        self.indptr -= self.indptr[0]

    def check(self, num_nodes: int) -> None:
        """Nothing: the file's reader checks each range."""

    def edges(self, low: int, high: int) -> GraphSlab:
        return self.graph.read_rows(low, high)

    def nodes(self, low: int, high: int) -> NodeData:
        return self.graph.read_nodes(low, high)

    def types(self, low: int, high: int) -> Array | None:
        return self.graph.read_nodes(low, high, ["type"]).type

    def sparse_counts(self, low: int, high: int) -> Int64 | None:
        return self.graph.read_sparse_counts(low, high)

    def node_bytes(self) -> float:
        return self.graph.node_bytes / max(self.graph.num_nodes, 1)


class HeldSource:
    """A slab in memory and the data of its nodes."""

    def __init__(self, slab: GraphSlab, data: NodeData) -> None:
        self.slab, self.data = slab, data
        self.lo, self.hi, self.indptr = slab.lo, slab.hi, slab.indptr

    def check(self, num_nodes: int) -> None:
        slab, rows = self.slab, self.hi - self.lo
        count = len(slab.indices)
        if len(slab.indptr) != rows + 1 or int(slab.indptr[-1]) != count:
            raise InputError(f"indptr doesn't fit {rows} rows and {count} edges")
        if count and not 0 <= slab.indices.min() <= slab.indices.max() < num_nodes:
            raise InputError(f"an edge leaves the graph of {num_nodes} nodes")
        for name, column in self._edge_columns().items():
            if len(column) != count:
                raise InputError(f"{name}: {len(column)} values, {count} edges")
        plain = {name: getattr(self.data, name) for name in _WHOLE} | self.data.named
        if not isinstance(self.data.features, CsrRows):
            plain["features"] = self.data.features
        lengths = {name: (column, rows) for name, column in plain.items()}
        for kind, column in self.data.typed_features.items():
            lengths[f"typed_features/{kind}"] = column, int(self._count(kind, 0, rows))
        for name, (column, expected) in lengths.items():
            if column is not None and len(column) != expected:
                raise InputError(f"{name} has {len(column)} rows for {expected} nodes")

    def edges(self, low: int, high: int) -> GraphSlab:
        bounds = self.indptr[low - self.lo : high - self.lo + 1]
        edges = slice(int(bounds[0]), int(bounds[-1]))
        columns = {name: column[edges] for name, column in self._edge_columns().items()}
        indices = self.slab.indices[edges]
        return replace(
            self.slab, lo=low, hi=high, indptr=bounds - bounds[0], indices=indices, **columns
        )

    def nodes(self, low: int, high: int) -> NodeData:
        a, b = low - self.lo, high - self.lo
        data, rows = self.data, slice(a, b)
        plain = {
            name: None if getattr(data, name) is None else getattr(data, name)[rows]
            for name in _WHOLE
        }
        typed = {
            kind: column[self._count(kind, 0, a) : self._count(kind, 0, b)]
            for kind, column in data.typed_features.items()
        }
        features = data.features
        if isinstance(features, CsrRows):
            first, last = int(features.indptr[a]), int(features.indptr[b])
            features = CsrRows(
                features.indptr[a : b + 1] - first,
                features.indices[first:last],
                features.data[first:last],
                features.width,
            )
        elif features is not None:
            features = features[rows]
        named = {name: column[rows] for name, column in data.named.items()}
        return NodeData(features=features, typed_features=typed, named=named, **plain)

    def types(self, low: int, high: int) -> Array | None:
        kinds = self.data.type
        return None if kinds is None else kinds[low - self.lo : high - self.lo]

    def sparse_counts(self, low: int, high: int) -> Int64 | None:
        features = self.data.features
        if not isinstance(features, CsrRows):
            return None
        return np.diff(features.indptr[low - self.lo : high - self.lo + 1]).astype(np.int64)

    def node_bytes(self) -> float:
        total = sum(column.nbytes for column in self.data.arrays().values())
        return total / max(self.hi - self.lo, 1)

    def _edge_columns(self) -> dict[str, Array]:
        names = ("weight", "relation", "edge_features", "edge_labels", "edge_split")
        found = {name: getattr(self.slab, name) for name in names}
        return {name: column for name, column in found.items() if column is not None}

    def _count(self, kind: int, low: int, high: int) -> int:
        kinds = self.data.type
        return 0 if kinds is None else int(np.count_nonzero(kinds[low:high] == kind))
