"""Graphs in .npz archives: adjacency in CSR or as pairs, or triples, and columns of the nodes.

Arrays (all plain numbers; none is unpickled):
    indptr, indices                    row i lists the nodes that edges from i lead to
    edge_index or edges                [2, E] or [E, 2]: source and destination
    subject or head, relation, object or tail        [E] each; num_nodes, num_relations
    weight [E], edge_features [E, D]
    features [N, F], or feature_indptr, feature_indices, feature_data, feature_shape
    labels [N] or [N, T]; train, valid, test: indices, or masks [N] or [S, N]
    type [N], typed_features_<t> [N_t, F_t], original_ids [N]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive, ArraySource
from hpcgnn.storage.importers.csr import csr_pairs, sparse_rows
from hpcgnn.storage.importers.pairs import edges_from, pair_column, two_columns
from hpcgnn.storage.importers.source import (
    Column,
    Edges,
    Nodes,
    Options,
    Source,
    SparseColumn,
    Split,
)

_NAMES = {
    "edge_index": ("edges",),
    "head": ("subject",),
    "tail": ("object",),
    "features": ("node_features",),
    "labels": ("node_labels",),
    "type": ("node_type",),
    "train": ("train_mask", "train_masks"),
    "valid": ("val", "valid_mask", "val_mask", "val_masks"),
    "test": ("test_mask", "test_masks"),
}
_TYPED = "typed_features_"
_SPARSE = ("feature_indptr", "feature_indices", "feature_data", "feature_shape")


class _Members:
    """The arrays of the archive under our names; remembers which were asked for."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.used: set[str] = set()

    def get(self, name: str) -> ArraySource | None:
        for known in (name, *_NAMES.get(name, ())):
            if known in self.archive:
                self.used.add(known)
                return self.archive[known]
        return None

    def integer(self, name: str) -> int | None:
        if name not in self.archive:
            return None
        self.used.add(name)
        value = self.archive.integer(name)
        if value < 0:
            raise self.archive[name].error("must not be negative", value)
        return value


def is_triples(path: Path) -> bool:
    """Whether the archive holds triples rather than an adjacency."""
    archive = Archive(path)
    return "relation" in archive and ("subject" in archive or "head" in archive)


def read_npz(path: Path, options: Options) -> Source:
    """The graph of an .npz archive.

    Raises:
        InputError: no edges in a known form, arrays of wrong shape or type.
    """
    members = _Members(Archive(path))
    nodes, known = _nodes(members, options)
    announced = members.integer("num_nodes")
    if announced is not None:
        known = {"num_nodes": announced, **known}
    edges, from_edges = _edges(members, options)
    if from_edges is not None:
        known = {"indptr": from_edges, **known}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in known.items())
        raise InputError(f"its arrays disagree on the number of nodes: {listed}", file=path)
    relations = members.integer("num_relations")
    unused = [name for name in members.archive.names if name not in members.used]
    return Source(
        path,
        edges,
        num_nodes=next(iter(known.values()), None),
        num_relations=relations,
        nodes=nodes,
        notes=[f"ignored: {', '.join(unused)}"] if unused else [],
    )


def read_sparse_features(path: Path) -> tuple[SparseColumn, int]:
    """A matrix stored by `scipy.sparse.save_npz` in CSR form, and its number of rows."""
    archive = Archive(path)
    return _sparse(archive, "indptr", "indices", "data", "shape")


def split_from(members: Archive, options: Options) -> Split | None:
    """`train`, `valid` and `test` of an archive, under any of their names."""
    return _split(_Members(members), options)


def _edges(members: _Members, options: Options) -> tuple[Iterator[Edges], int | None]:
    """The edges and, from a CSR adjacency, the number of nodes."""
    path = members.archive.path
    indptr, indices = members.get("indptr"), members.get("indices")
    pair, head, tail = members.get("edge_index"), members.get("head"), members.get("tail")
    number = None
    if indptr is not None and indices is not None:
        for array in (indptr, indices):
            _check_dimensions(array, 1)
        number = indptr.shape[0] - 1
        ends = Column(path, "indices", csr_pairs(indptr, indices))
    elif pair is not None:
        ends = pair_column(pair, options.limit)
    elif head is not None and tail is not None:
        for array in (head, tail):
            _check_dimensions(array, 1)
        ends = two_columns(path, "triples", head.flat(), tail.flat())
    else:
        raise InputError(
            "has no edges: indptr and indices, edge_index, or head, relation and tail are needed",
            file=path,
        )
    edges = edges_from(
        ends,
        weight=_edge_column(members, "weight", 1, options) if options.weights else None,
        relation=_edge_column(members, "relation", 1, options),
        features=_edge_column(members, "edge_features", 2, options),
    )
    return edges, number


def _edge_column(members: _Members, name: str, ndim: int, options: Options) -> Column | None:
    array = members.get(name)
    if array is None:
        return None
    _check_dimensions(array, ndim)
    return array.column(options.limit)


def _check_dimensions(array: ArraySource, ndim: int) -> None:
    if array.ndim != ndim:
        raise array.error(f"must have {ndim} dimensions", array.shape)


def _nodes(members: _Members, options: Options) -> tuple[Nodes, dict[str, int]]:
    """The columns of the nodes, and how many nodes each speaks of."""
    known: dict[str, int] = {}
    nodes = Nodes(split=_split(members, options))
    if "feature_indptr" in members.archive:
        members.used.update(_SPARSE)
        nodes.features, known["feature_shape"] = _sparse(members.archive, *_SPARSE)
    for name, attribute in (
        ("features", "features"),
        ("labels", "labels"),
        ("type", "types"),
        ("original_ids", "ids"),
    ):
        array = members.get(name)
        if array is not None and array.ndim:
            known[name] = array.shape[0]
            setattr(nodes, attribute, array.column(options.limit))
    for name in members.archive.names:
        if name.startswith(_TYPED) and name[len(_TYPED) :].isdecimal():
            members.used.add(name)
            column = members.archive[name].column(options.limit)
            nodes.typed_features[int(name[len(_TYPED) :])] = column
    return nodes, known


def _sparse(
    archive: Archive, indptr: str, indices: str, data: str, shape: str
) -> tuple[SparseColumn, int]:
    size = archive[shape]
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise size.error("must be two integers: rows and columns", size.shape)
    rows, width = (int(k) for k in size.load(64))
    pointers, columns, values = archive[indptr], archive[indices], archive[data]
    for array in (pointers, columns, values):
        _check_dimensions(array, 1)
    if not 0 < width < 1 << 31 or pointers.shape != (rows + 1,):
        raise size.error(f"does not fit {indptr} of shape {pointers.shape}", [rows, width])
    if columns.shape != values.shape:
        raise columns.error(f"must have the shape of {data}, {values.shape}", columns.shape)
    pieces = sparse_rows(pointers, columns, values, width)
    return SparseColumn(archive.path, indices, width, pieces), rows


def _split(members: _Members, options: Options) -> Split | None:
    parts = {}
    for name in ("train", "valid", "test"):
        array = members.get(name)
        if array is not None:
            parts[name] = array.load(options.limit)
    return Split(members.archive.path, parts) if parts else None
