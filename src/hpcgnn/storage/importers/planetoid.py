"""Planetoid's files ind.NAME.x, y, tx, ty, allx, ally, graph and test.index.

Nodes are the rows of allx, then the test nodes in the order of test.index; test nodes that are
missing there (citeseer) have no features and no label. The split is the usual one: the labelled
rows of x for training, the 500 after them for validation, test.index for testing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.pickles import CsrState, load_pickle
from hpcgnn.storage.importers.source import (
    Column,
    Edges,
    Nodes,
    Options,
    Source,
    SparseColumn,
    SparsePiece,
    Split,
)
from hpcgnn.storage.importers.text import Table, blocks

_VALID = 500
_MAX_GAP = 1 << 20


def read_planetoid(path: Path, options: Options) -> Source:
    """The graph of which `path` is any one file, `DIR/ind.NAME`, or a folder with one graph.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """
    stem = _stem(path)
    files = {part: stem.with_name(f"{stem.name}.{part}") for part in ("allx", "ally", "tx", "ty")}
    test = _test_index(stem.with_name(f"{stem.name}.test.index"))
    allx, tx = (_Csr.load(files[part], options) for part in ("allx", "tx"))
    ally, ty = (_one_hot(files[part], options) for part in ("ally", "ty"))
    train = _one_hot(stem.with_name(f"{stem.name}.y"), options).shape[0]
    for matrix, labels, number in ((allx, ally, allx.rows), (tx, ty, test.shape[0])):
        if matrix.rows != number or labels.shape[0] != number:
            raise InputError(
                f"has {matrix.rows} rows where {number} nodes and {labels.shape[0]} labels are",
                file=matrix.path,
            )
    if test.min() < allx.rows or tx.width != allx.width:
        raise InputError("test nodes must come after the rows of allx", file=files["tx"])
    num_nodes = int(test.max()) + 1
    labels = np.full(num_nodes, -1, np.int64)
    labels[: allx.rows], labels[test] = ally, ty
    valid = np.arange(train, min(train + _VALID, allx.rows))
    parts = {"train": np.arange(train), "valid": valid, "test": test}
    nodes = Nodes(
        features=_features(allx, tx, test, num_nodes),
        labels=Column(files["ally"], "labels", iter([labels])),
        split=Split(stem, parts),
    )
    graph = stem.with_name(f"{stem.name}.graph")
    edges = _edges(load_pickle(graph, options.limit), graph)
    return Source(
        graph,
        edges,
        num_nodes,
        nodes=nodes,
        symmetrise=True,
        self_loops="remove",
        notes=["edges are stored both ways and without self-loops, as is usual for these files"],
    )


def _stem(path: Path) -> Path:
    """DIR/ind.NAME"""
    if path.is_dir():
        found = sorted(path.glob("ind.*.graph"))
        if len(found) != 1:
            raise InputError(f"name one graph, as in ind.cora: there are {len(found)}", file=path)
        path = found[0]
    words = path.name.split(".")
    if len(words) < 2 or words[0] != "ind":
        raise InputError("Planetoid's files are called ind.NAME.graph and so on", file=path)
    return path.with_name(".".join(words[:2]))


def _test_index(path: Path) -> np.ndarray:
    table = Table([("node", np.int64)])
    parts = [table.parse(block)["node"] for block in blocks(path)]
    test = np.concatenate(parts) if parts else np.empty(0, np.int64)
    listed = np.sort(test)
    if test.shape[0] == 0 or listed[0] < 0 or (listed[1:] == listed[:-1]).any():
        raise InputError("must list each test node once", file=path)
    if listed[-1] - listed[0] >= test.shape[0] + _MAX_GAP:
        raise InputError("leaves too many nodes out", file=path, value=int(listed[-1]))
    return test


@dataclass
class _Csr:
    path: Path
    rows: int
    width: int
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @staticmethod
    def load(path: Path, options: Options) -> _Csr:
        found = load_pickle(path, options.limit)
        if not isinstance(found, CsrState):
            raise InputError("must be a SciPy CSR matrix", file=path)
        rows, width = found.shape(path)
        indptr, indices, data = (found.part(name, path) for name in ("indptr", "indices", "data"))
        if indptr.dtype.kind != "i" or indices.dtype.kind != "i" or width == 0:
            raise InputError("must be a CSR matrix with integer indices", file=path)
        if indptr.shape != (rows + 1,) or indices.ndim != 1 or data.shape != indices.shape:
            raise InputError("arrays don't fit its shape", file=path, value=[rows, width])
        counts = np.diff(indptr)
        if indptr[0] != 0 or indptr[-1] != indices.shape[0] or counts.min(initial=0) < 0:
            raise InputError("row pointers must rise from 0 to the number of entries", file=path)
        return _Csr(path, rows, width, indptr.astype(np.int64), indices.astype(np.int64), data)


def _features(allx: _Csr, tx: _Csr, test: np.ndarray, num_nodes: int) -> SparseColumn:
    """Rows of allx, then those of tx in ascending order of `test`; rows missing there are empty."""
    counts = np.zeros(num_nodes, np.int64)
    counts[: allx.rows] = np.diff(allx.indptr)
    lengths = np.diff(tx.indptr)
    counts[test] = lengths
    order = np.argsort(test)
    starts = np.cumsum(lengths[order]) - lengths[order]
    entries = np.arange(tx.indices.shape[0]) + np.repeat(tx.indptr[order] - starts, lengths[order])
    piece = SparsePiece(
        counts,
        np.concatenate([allx.indices, tx.indices[entries]]),
        np.concatenate([allx.data, tx.data[entries]]),
    )
    return SparseColumn(allx.path, "features", allx.width, iter([piece]))


def _one_hot(path: Path, options: Options) -> np.ndarray:
    """int64 [n] classes; a row without a 1 is unknown."""
    found = load_pickle(path, options.limit)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.shape[1] == 0:
        raise InputError("must be an array of one row per node, one column per class", file=path)
    if not np.isin(found, (0, 1)).all() or (found.sum(axis=1) > 1).any():
        raise InputError("must hold a single 1 in a row, or none", file=path)
    return np.where(found.any(axis=1), found.argmax(axis=1), -1)


def _edges(graph: Any, path: Path) -> Iterator[Edges]:
    if not isinstance(graph, dict) or not all(isinstance(row, list) for row in graph.values()):
        raise InputError("must be a dictionary of lists of neighbours", file=path)
    nodes = list(graph)
    neighbours = [node for row in graph.values() for node in row]
    if not all(type(node) is int and abs(node) < 1 << 62 for node in (*nodes, *neighbours)):
        raise InputError("must name nodes by integers", file=path)
    counts = [len(row) for row in graph.values()]
    source = np.repeat(np.array(nodes, np.int64), counts)
    yield Edges(
        source,
        np.array(neighbours, np.int64),
        place=lambda k: f"neighbours of node {source[k]}",
    )
