"""Reading of graph.h5 by slabs of nodes, with every value checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hpcgnn.graph.kinds import KindNames
from hpcgnn.storage import checks, schema
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.fingerprint import to_hex
from hpcgnn.storage.read.nodes import (
    NodeColumns,
    NodeData,
    open_encoding,
    open_names,
    read_encoding,
    read_pointers,
)
from hpcgnn.storage.read.reader import FormatFile, Reader, StoredColumn
from hpcgnn.storage.schema import COUNT_LIMITS, COUNT_NAMES, DATASET, GRAPH, Counts

_SLAB_EDGES = 1 << 22


@dataclass
class GraphSlab:
    """The in-neighbour lists of nodes `lo .. hi - 1`.

    `indptr` int64 [hi-lo+1] starts at 0; `indices` int64 [e]; `weight` float32 [e], `relation`
    int32 [e], `edge_features` float32 [e, D], `edge_labels` (int64 [e], int8 [e, T], float32 [e] or
    [e, W]) and `edge_split` int8 [e] are None if the graph has none.
    """

    lo: int
    hi: int
    indptr: np.ndarray
    indices: np.ndarray
    weight: np.ndarray | None = None
    relation: np.ndarray | None = None
    edge_features: np.ndarray | None = None
    edge_labels: np.ndarray | None = None
    edge_split: np.ndarray | None = None


class GraphFile(FormatFile):
    """An open graph.h5; opening it reads and checks the header only.

    Attributes: `path`, `counts` and each of its fields (`num_nodes`, `num_edges`, `num_features`,
    `num_classes`, `multilabel`, `num_splits`, `num_relations`, `num_types`, `edge_width`),
    `fingerprint` (16 hex digits), `config` (how the file was made), `sparse`, `array_names`,
    `names` (the text ids of the nodes, or None).

    Raises:
        InputError: the file is damaged or not as expected, here and in every read; the error names
            file, dataset and value.
    """

    format = GRAPH

    def _open(self) -> None:
        reader = self._reader
        self.counts = counts = read_counts(reader)
        self.num_nodes = counts.num_nodes
        self.num_edges = counts.num_edges
        self.num_features = counts.num_features
        self.num_classes = counts.num_classes
        self.multilabel = bool(counts.multilabel)
        self.num_splits = counts.num_splits
        self.num_relations = counts.num_relations
        self.num_types = counts.num_types
        self.edge_width = counts.edge_width
        self.fingerprint = reader.text("fingerprint")
        self.config = reader.json("config")
        edges = counts.num_edges
        self._indptr = reader.column("edges/indptr", ("int64",), (counts.num_nodes + 1,))
        self._indices = reader.column("edges/indices", ("int32", "int64"), (edges,))
        self._weight = self._optional("edges/weight", "float32", (edges,))
        self._relation: StoredColumn | None = None
        if counts.num_relations:
            self._relation = reader.column("edges/relation", ("int32",), (edges,))
        self._edge_features: StoredColumn | None = None
        if counts.edge_width:
            shape = (edges, counts.edge_width)
            self._edge_features = reader.column("edges/features", ("float32",), shape)
        self._edge_labels: StoredColumn | None = None
        if reader.has("edges/labels"):
            self._edge_labels = reader.rows("edges/labels", schema.LABEL_TYPES, edges)
        self._edge_split = self._optional("edges/split", "int8", (edges,))
        self._nodes = NodeColumns(reader, "", counts.num_nodes, counts)
        self.names = open_names(reader, counts.num_nodes)
        self._encoding = open_encoding(reader)
        self.array_names = self._nodes.array_names
        self.sparse = reader.is_group("nodes/features")
        read_pointers(self._indptr, 0, 0, edges)
        read_pointers(self._indptr, counts.num_nodes, counts.num_nodes, edges)

    @property
    def weighted(self) -> bool:
        return self._weight is not None

    def read_encoding(self) -> Encoding | None:
        """Return how the tables that the graph was made from were encoded, or None."""
        return read_encoding(self._encoding)

    def kinds(self) -> KindNames:
        """Return the names of node types and relations, as far as the file has them."""
        encoding = self.read_encoding() if self.num_relations else None
        return KindNames.of(self.config, [] if encoding is None else encoding.relations)

    def read_indptr(self, lo: int, hi: int) -> np.ndarray:
        """Return row pointers `lo .. hi` (both included), not rebased: int64 [hi-lo+1]."""
        return read_pointers(self._indptr, lo, hi, self.num_edges)

    def read_rows(self, lo: int, hi: int) -> GraphSlab:
        """Return the in-edges of nodes `lo .. hi - 1`."""
        indptr = self.read_indptr(lo, hi)
        first, last = int(indptr[0]), int(indptr[-1])
        indptr -= first
        indices = self._indices.read(first, last)
        checks.in_range(indices, 0, self.num_nodes, self._indices.place(first))
        slab = GraphSlab(lo, hi, indptr, indices.astype(np.int64, copy=False))
        if self._weight is not None:
            slab.weight = self._weight.read(first, last)
            checks.finite(slab.weight, self._weight.place(first))
        if self._relation is not None:
            slab.relation = self._relation.read(first, last)
            checks.in_range(slab.relation, 0, self.num_relations, self._relation.place(first))
        if self._edge_features is not None:
            slab.edge_features = self._edge_features.read(first, last)
            checks.finite(slab.edge_features, self._edge_features.place(first))
        if self._edge_labels is not None:
            slab.edge_labels = self._edge_labels.read(first, last)
            schema.check_labels(slab.edge_labels, self._edge_labels.place(first))
        if self._edge_split is not None:
            slab.edge_split = self._edge_split.read(first, last)
            checks.in_range(slab.edge_split, 0, 4, self._edge_split.place(first))
        return slab

    def read_sources(self, lo: int, hi: int) -> np.ndarray:
        """Return the sources of the edges into nodes `lo .. hi - 1`, in their stored dtype."""
        first, last = int(self.read_indptr(lo, lo)[0]), int(self.read_indptr(hi, hi)[0])
        indices = self._indices.read(first, last)
        checks.in_range(indices, 0, self.num_nodes, self._indices.place(first))
        return indices

    def read_nodes(self, lo: int, hi: int, which: Iterable[str] | None = None) -> NodeData:
        """Return columns of nodes `lo .. hi - 1`; `which` of `nodes.KINDS` (None: all)."""
        return self._nodes.read(lo, hi, which)

    def read_sparse_counts(self, lo: int, hi: int) -> np.ndarray | None:
        """Return the numbers of stored features of nodes `lo .. hi - 1`; None if not sparse."""
        return self._nodes.sparse_counts(lo, hi)

    def bytes_of_nodes(self, lo: int, hi: int) -> np.ndarray:
        """Return the bytes in memory of the data of each of the nodes `lo .. hi - 1`."""
        return self._nodes.row_bytes(lo, hi)

    @property
    def node_bytes(self) -> int:
        """Return the bytes of all nodes' data in memory."""
        return sum(
            len(column) * column.width * column.dtype.itemsize for column in self._nodes.columns()
        )

    @property
    def carried_bytes(self) -> list[int]:
        """Return the bytes of each edge attribute that messages use, per edge."""
        return _row_bytes(self._weight, self._relation, self._edge_features)

    @property
    def edge_bytes(self) -> int:
        """Return the bytes of all attributes of an edge."""
        return sum(self.carried_bytes + _row_bytes(self._edge_labels, self._edge_split))

    def verify(self) -> None:
        """Read and check all data, slab by slab, and compare the fingerprint."""
        lo = 0
        while lo < self.num_nodes:
            hi = self._slab_end(lo)
            self.read_rows(lo, hi)
            self.read_nodes(lo, hi)
            if self.names is not None:
                self.names.texts(lo, hi)
            lo = hi
        self.read_encoding()
        self.compare(self.fingerprint_of(0, self.num_nodes))

    def compare(self, total: int) -> None:
        """Raise InputError unless `total`, the sum over all nodes, is the fingerprint."""
        if to_hex(total) != self.fingerprint:
            raise self._reader.place("fingerprint").error(
                f"the data don't match the fingerprint {self.fingerprint}: create the file again",
                to_hex(total),
            )

    def fingerprint_of(self, lo: int, hi: int) -> int:
        """Return the contribution of nodes `lo .. hi - 1` to the fingerprint, a sum modulo 2^64.

        Ranks that read disjoint slabs can thus verify the whole file, each reading its share again.
        """
        total = 0
        for column in self._columns():
            first, last = self._share(column, lo, hi)
            total += column.fingerprint(first, last)
        return total

    def _columns(self) -> list[StoredColumn]:
        given = [self._weight, self._relation, self._edge_features]
        answers = [self._edge_labels, self._edge_split]
        edges = [column for column in given + answers if column is not None]
        nodes = self._nodes.columns()
        return [self._indptr, self._indices, *edges, *nodes, *self.text_columns()]

    def text_columns(self) -> list[StoredColumn]:
        """Return the datasets with the names of the nodes and the encoding of tables."""
        texts = [] if self.names is None else self.names.columns()
        return texts if self._encoding is None else [*texts, self._encoding]

    def _share(self, column: StoredColumn, lo: int, hi: int) -> tuple[int, int]:
        """Return the range of a column's rows that belongs to nodes `lo .. hi - 1`."""
        group = column.name.rpartition("/")[0]
        if lo == hi:
            return 0, 0
        if column.name == DATASET or column.name.startswith("nodes/typed_features/"):
            return 0, len(column) if lo == 0 else 0
        if column.name.endswith("/indptr"):
            return lo, hi + (hi == self.num_nodes)
        if group in ("nodes", "nodes/arrays"):
            return lo, hi
        pointers = next(c for c in self._columns() if c.name == f"{group}/indptr")
        return int(pointers.read(lo, lo + 1)[0]), int(pointers.read(hi, hi + 1)[0])

    def _slab_end(self, lo: int) -> int:
        """Return the end of a slab: at most 2^18 nodes and `_SLAB_EDGES` edges, at least a node."""
        hi = min(self.num_nodes, lo + (1 << 18))
        indptr = self.read_indptr(lo, hi)
        fits = int(np.searchsorted(indptr, indptr[0] + _SLAB_EDGES, side="right")) - 1
        return lo + max(1, min(fits, hi - lo))

    def _optional(self, name: str, dtype: str, shape: tuple[int, ...]) -> StoredColumn | None:
        return self._reader.column(name, (dtype,), shape) if self._reader.has(name) else None


def _row_bytes(*columns: StoredColumn | None) -> list[int]:
    return [column.width * column.dtype.itemsize for column in columns if column is not None]


def read_counts(reader: Reader) -> Counts:
    """Return the counts among the attributes, each checked against its limits."""
    counts = Counts(**{n: reader.integer(n, 0, COUNT_LIMITS[n]) for n in COUNT_NAMES})
    if counts.num_nodes == 0:
        raise reader.place("num_nodes").error("a graph needs at least one node", 0)
    return counts
