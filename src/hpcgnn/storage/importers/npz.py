"""Graphs in .npz archives: adjacency in CSR or as pairs, or triples, and node columns.

Arrays that are read (plain numbers only; nothing is unpickled):
    indptr, indices                    row i lists the destinations of the edges from i
    a square matrix stored by `scipy.sparse.save_npz` as csr, csc or coo: entry (i, j) is an edge
                                       from i to j, its value the weight unless all are 1
    edge_index or edges                [2, E] or [E, 2]: source and destination
    subject or head, relation, object or tail        [E] each; num_nodes, num_relations
    weight [E], relation [E], edge_features [E, D] or [E], edge_label [E] or [E, W], edge_split [E]
                                       of 0 .. 3
    features [N, F], or feature_indptr, feature_indices, feature_data, feature_shape
    labels [N] or [N, T]; train, valid, test: indices, or masks [N] or [S, N]
    type [N], typed_features_<t> [N_t, F_t], original_ids [N]
    array_<name> [N] or [N, W]: kept as graph.nodes["<name>"]
Other programs' names are recognised too: x, y, edge_weight, edge_attr, edge_type, train_mask and
val_mask of PyTorch Geometric, train_idx and val_idx, adj_indptr, adj_indices, adj_data and
attr_indptr ... or adj_matrix.indptr ... of Shchur's graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive, ArraySource
from hpcgnn.storage.importers.csr import (
    check_dimensions,
    compressed_pairs,
    scipy_matrix,
    sparse_rows,
    weights_of,
)
from hpcgnn.storage.importers.pairs import edges_from, pair_column, two_columns
from hpcgnn.storage.importers.source import (
    Column,
    EdgeChunk,
    ImportOptions,
    Nodes,
    NodeSplit,
    Source,
    SparseColumn,
)

_NAMES = {
    "indptr": ("adj_indptr", "adj_matrix.indptr"),
    "indices": ("adj_indices", "adj_matrix.indices"),
    "edge_index": ("edges",),
    "head": ("subject",),
    "tail": ("object",),
    "relation": ("edge_type",),
    "weight": ("edge_weight",),
    "features": ("x", "node_features", "feat", "feature", "node_feat", "attr_matrix"),
    "labels": ("y", "node_labels", "label", "node_label"),
    "type": ("node_type",),
    "feature_indptr": ("attr_indptr", "attr_matrix.indptr"),
    "feature_indices": ("attr_indices", "attr_matrix.indices"),
    "feature_data": ("attr_data", "attr_matrix.data"),
    "feature_shape": ("attr_shape", "attr_matrix.shape"),
    "edge_features": ("edge_attr",),
    "edge_label": ("edge_labels",),
    "train": ("train_mask", "train_masks", "train_idx"),
    "valid": ("val", "valid_mask", "val_mask", "val_masks", "val_idx", "valid_idx"),
    "test": ("test_mask", "test_masks", "test_idx"),
}
_TYPED = re.compile(r"typed_features_(0|[1-9][0-9]{0,8})")
_NAMED = "array_"
_SPARSE = ("feature_indptr", "feature_indices", "feature_data", "feature_shape")
_MASKS = ("_mask", "_masks")
LOOK_ALIKE = {  # other programs' names for these arrays, as whole words
    "features": re.compile(r"(?i)(^|_)(x|feats?|features?|attrs?|attributes?|emb\w*)(_|$)"),
    "labels": re.compile(r"(?i)(^|_)(y|labels?|class(es)?|targets?)(_|$)"),
}
_SET_LOOK_ALIKE = {
    "train": re.compile(r"(?i)(^|_)train(ing)?(_|$)"),
    "valid": re.compile(r"(?i)(^|_)(val|valid|validation|dev)(_|$)"),
    "test": re.compile(r"(?i)(^|_)test(ing)?(_|$)"),
}
_ROWS_OF_SET = re.compile(r"(?i)(^|_)(mask|idx|index|indices|ids|nodes|set|split)(_|$)")


def set_like(name: str, values: ArraySource | np.ndarray, num_nodes: int | None) -> str | None:
    """Return the set (train, valid, test) of nodes that an array looks like, or None."""
    if "edge" in name or not values.ndim:
        return None
    mask = values.dtype.kind == "b" and num_nodes in (None, values.shape[0])
    rows = values.dtype.kind in "iu" and values.ndim == 1 and bool(_ROWS_OF_SET.search(name))
    if not (mask or rows):
        return None
    return next((part for part, like in _SET_LOOK_ALIKE.items() if like.search(name)), None)


def other_name(part: str, name: str) -> str:
    """Return the message about an array of such a name."""
    right = f"{'val' if part == 'valid' else part}_mask"
    return f"looks like the {part} set of the nodes: call it {right}, or use --leave-out {name}"


class _Members:
    """The arrays of the archive under our names, with a record of those that were used."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.used: set[str] = set()

    def get(self, name: str) -> ArraySource | None:
        found = [known for known in (name, *_NAMES.get(name, ())) if known in self.archive]
        if name in LOOK_ALIKE and len(found) > 1:
            raise InputError(
                f"holds both {' and '.join(found)}, which have the same meaning: store only one, "
                "or name the other with --leave-out",
                file=self.archive.path,
            )
        for known in found[:1]:
            self.used.add(known)
            return self.archive[known]
        return None

    def leave_out(self, names: tuple[str, ...]) -> None:
        """Exclude these arrays.

        Raises:
            InputError: there is no array of that name.
        """
        for name in names:
            if name not in self.archive:
                raise InputError(
                    "no such array in the file, for --leave-out", file=self.archive.path, value=name
                )
            self.archive.names.remove(name)
            self.archive.others.append(name)

    def refuse_look_alikes(self, nodes: Nodes, num_nodes: int | None) -> None:
        """Refuse features or labels that would be ignored silently because of their name."""
        for what, pattern in LOOK_ALIKE.items():
            if getattr(nodes, what) is not None or (what == "features" and nodes.typed_features):
                continue
            for name in self.archive.names:
                if name in self.used or "edge" in name or not pattern.search(name):
                    continue
                array = self.archive[name]
                if (
                    array.ndim
                    and num_nodes in (None, array.shape[0])
                    and array.dtype.kind in "biuf"
                ):
                    raise array.error(
                        f"looks like {what} of the nodes: call it {what}, or use --leave-out "
                        f"{name}",
                        array.shape,
                    )

    def refuse_set_look_alikes(self, num_nodes: int | None) -> None:
        """Refuse sets of nodes that would be ignored because of their name."""
        for name in self.archive.names:
            array = self.archive[name]
            part = None if name in self.used else set_like(name, array, num_nodes)
            if part is not None and not self.has(part):
                raise array.error(other_name(part, name), array.shape)

    def has(self, name: str) -> bool:
        return any(known in self.archive for known in (name, *_NAMES.get(name, ())))

    def need(self, name: str) -> ArraySource:
        found = self.get(name)
        if found is None:
            raise InputError("no such array in the file", file=self.archive.path, dataset=name)
        return found

    def integer(self, name: str) -> int | None:
        if name not in self.archive:
            return None
        self.used.add(name)
        value = self.archive.integer(name)
        if value < 0:
            raise self.archive[name].error("must not be negative", value)
        return value


def is_triples(path: Path) -> bool:
    """Return whether the archive holds triples rather than an adjacency."""
    archive = Archive(path)
    return "relation" in archive and ("subject" in archive or "head" in archive)


def read_npz(path: Path, options: ImportOptions, *, triples: bool = False) -> Source:
    """Return the graph of an .npz archive; with `triples`, it must have relations.

    Raises:
        InputError: there are no edges in a known form, or an array has a wrong shape or dtype.
    """
    if triples and not is_triples(path):
        raise InputError("has no triples: head, relation and tail are needed", file=path)
    return read_archive(Archive(path), options)


def read_archive(archive: Archive, options: ImportOptions) -> Source:
    """Return the graph of these arrays.

    Raises:
        InputError: as in `read_npz`.
    """
    path = archive.path
    members = _Members(archive)
    members.leave_out(options.leave_out)
    nodes, known = _nodes(members, options)
    announced = members.integer("num_nodes")
    if announced is not None:
        known = {"num_nodes": announced, **known}
    edges, num_edges, from_edges, rows_as_given = _edges(members, options)
    if from_edges is not None:
        known = {"indptr": from_edges, **known}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in known.items())
        raise InputError(f"its arrays disagree on the number of nodes: {listed}", file=path)
    relations = members.integer("num_relations")
    number = next(iter(known.values()), None)
    members.refuse_look_alikes(nodes, number)
    members.refuse_set_look_alikes(number)
    return Source(
        path,
        edges,
        num_nodes=number,
        num_relations=relations,
        num_edges=num_edges,
        rows_as_given=rows_as_given,
        nodes=nodes,
        notes=members.archive.left_out(members.used),
    )


def read_sparse_features(path: Path, options: ImportOptions) -> tuple[SparseColumn, int]:
    """Return a matrix stored by `scipy.sparse.save_npz` in CSR form, and its number of rows.

    Raises:
        InputError: the form is another, such as CSC, or is not stored and the matrix is square, so
            that rows may be columns.
    """
    archive = Archive(path)
    said = archive.text("format") if "format" in archive else None
    if said in (None, "csr"):
        column, rows = _sparse(archive, options, "indptr", "indices", "data", "shape")
        if said == "csr" or rows != column.width:
            return column, rows
    raise InputError(
        "must be a CSR matrix of scipy.sparse.save_npz: store matrix.tocsr()",
        file=path,
        dataset="format",
        value=said,
    )


def read_split(path: Path, options: ImportOptions) -> tuple[NodeSplit, list[str]]:
    """Return `train`, `valid` and `test` of an archive, under any of their names, and notes."""
    members = _Members(Archive(path))
    found = _split(members, options)
    if found is None:
        raise InputError("has none of train, valid and test", file=path)
    return found, members.archive.left_out(members.used)


def _edges(
    members: _Members, options: ImportOptions
) -> tuple[Iterator[EdgeChunk], int | None, int | None, bool]:
    """Return the edges, their number and the number of nodes if known, and whether they are pairs.

    The number of nodes is known from a matrix or row pointers; other edges are pairs of node
    numbers.
    """
    ends, weight, number = _ends(members, options)
    if options.weights and (given := _edge_column(members, "weight", (1, 2), options)) is not None:
        if weight is not None:
            raise InputError(
                "has both data and weight: store the weights once", file=members.archive.path
            )
        weight = given
    edges = edges_from(
        ends,
        weight=weight,
        relation=_edge_column(members, "relation", (1,), options),
        features=_edge_column(members, "edge_features", (1, 2), options),
        labels=_edge_column(members, "edge_label", (1, 2), options),
        split=_edge_column(members, "edge_split", (1,), options),
    )
    return edges, ends.length, number, number is None


def _ends(members: _Members, options: ImportOptions) -> tuple[Column, Column | None, int | None]:
    """Return the ends of the edges; from a matrix also the weights and the number of nodes."""
    path = members.archive.path
    forms = [
        name
        for name, needed in (
            ("matrix", ("format", "data")),
            ("indptr and indices", ("indptr", "indices")),
            ("edge_index", ("edge_index",)),
            ("head and tail", ("head", "tail")),
        )
        if all(members.has(part) for part in needed)
    ]
    weight = number = None
    if "matrix" in forms:
        if "edge_index" in forms:
            raise InputError("has both a matrix and edge_index: store one", file=path)
        ends_in = {"row", "col"} if "row" in members.archive else {"indptr", "indices"}
        members.used |= {"format", "data", "shape", "_is_array"} | ends_in
        ends, weight, number = scipy_matrix(members.archive, options)
    elif not forms:
        raise InputError(
            "has no edges: edge_index, indptr and indices, or head, relation and tail are needed",
            file=path,
            value=", ".join([*members.archive.names, *members.archive.others])[:80] or "nothing",
        )
    elif len(forms) > 1:
        raise InputError(f"has both {' and '.join(forms)}: store the edges once", file=path)
    elif "edge_index" in forms:
        pair = members.need("edge_index")
        ends = pair_column(pair, options.limit, sources_first=pair.member == "edge_index")
    elif "head and tail" in forms:
        if not members.has("relation"):
            raise InputError("has head and tail but no relation", file=path)
        head, tail = members.need("head"), members.need("tail")
        for array in (head, tail):
            check_dimensions(array, 1)
        ends = two_columns(path, "triples", head.flat(), tail.flat())
    else:
        if {"data", "shape"} <= set(members.archive.names):
            raise InputError(
                "holds a matrix without a format, which would say whether indptr is over rows or "
                "columns: store it with scipy.sparse.save_npz, or use --leave-out data if it is "
                "over rows and the values are not weights",
                file=path,
            )
        indptr, indices = members.need("indptr"), members.need("indices")
        ends, number = compressed_pairs(indptr, indices), indptr.shape[0] - 1
        for name in ("adj_data", "adj_matrix.data"):
            if name in members.archive:
                members.used |= {name, name.replace("data", "shape")}
                weight = weights_of(members.archive[name], options)
    return ends, weight, number


def _edge_column(
    members: _Members, name: str, ndim: tuple[int, ...], options: ImportOptions
) -> Column | None:
    array = members.get(name)
    if array is None:
        return None
    if array.ndim not in ndim:
        raise array.error(f"must have {' or '.join(map(str, ndim))} dimensions", array.shape)
    return array.column(options.limit)


def _nodes(members: _Members, options: ImportOptions) -> tuple[Nodes, dict[str, int]]:
    """Return the columns of the nodes, and the number of nodes in each."""
    path = members.archive.path
    known: dict[str, int] = {}
    nodes = Nodes(split=_split(members, options))
    if members.has("feature_indptr"):
        if members.has("features"):
            raise InputError("has both features and feature_indptr: store one", file=path)
        names = [members.need(name).member or name for name in _SPARSE]
        nodes.features, known["feature_shape"] = _sparse(members.archive, options, *names)
    for name, attribute in (
        ("features", "features"),
        ("labels", "labels"),
        ("type", "types"),
        ("original_ids", "ids"),
    ):
        array = members.get(name)
        if array is not None:
            if array.ndim == 0:
                raise array.error("must have a value or a row for each node", array.shape)
            known[name] = array.shape[0]
            setattr(nodes, attribute, array.column(options.limit))
    for name in members.archive.names:
        if match := _TYPED.fullmatch(name):
            members.used.add(name)
            nodes.typed_features[int(match[1])] = members.archive[name].column(options.limit)
        elif name.startswith(_NAMED):
            members.used.add(name)
            array = members.archive[name]
            if array.ndim == 0:
                raise array.error("must have a value or a row for each node", array.shape)
            known[name] = array.shape[0]
            nodes.arrays[name.removeprefix(_NAMED)] = array.column(options.limit)
    return nodes, known


def _sparse(
    archive: Archive, options: ImportOptions, indptr: str, indices: str, data: str, shape: str
) -> tuple[SparseColumn, int]:
    size = archive[shape]
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise size.error("must be two integers: rows and columns", size.shape)
    rows, width = (int(k) for k in size.load(64))
    pointers, columns, values = archive[indptr], archive[indices], archive[data]
    for array in (pointers, columns, values):
        check_dimensions(array, 1)
    if not 0 < width < 1 << 31 or pointers.shape != (rows + 1,):
        raise size.error(f"does not fit {indptr} of shape {pointers.shape}", [rows, width])
    if columns.shape != values.shape:
        raise columns.error(f"must have the shape of {data}, {values.shape}", columns.shape)
    chunks = sparse_rows(pointers, columns, values, width, options.limit)
    return SparseColumn(archive.path, indices, width, chunks), rows


def _split(members: _Members, options: ImportOptions) -> NodeSplit | None:
    parts = {}
    masks = set()
    for name in ("train", "valid", "test"):
        array = members.get(name)
        if array is not None:
            parts[name] = array.load(options.limit)
            if (array.member or "").endswith(_MASKS):
                masks.add(name)
    return NodeSplit(members.archive.path, parts, frozenset(masks)) if parts else None
