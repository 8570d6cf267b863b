"""Planetoid's pickles of NumPy arrays, SciPy CSR matrices and plain lists, read without execution.

No class of the pickle is ever instantiated: arrays and matrices become inert records of their
state, from which the values are taken after checks. Any other class in a pickle is refused by name.
Memory is proportional to the size of the file: copies are refused, and references are limited.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError, counted, human
from hpcgnn.storage.importers.opening import open_binary, require
from hpcgnn.storage.importers.source import (
    Column,
    EdgeChunk,
    ImportOptions,
    Nodes,
    NodeSplit,
    Source,
    SparseChunk,
    SparseColumn,
)
from hpcgnn.storage.importers.text import Table, blocks

_MAX_MEMO = 1 << 24
_MAX_REFERENCES = 48  # to earlier objects: the names of a few types and fields
_REFUSED = frozenset(
    {"DUP", "EMPTY_SET", "FROZENSET", "ADDITEMS", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
)


class _Inert:
    """A stand-in for any object of the pickle, with its constructor's arguments and its state."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Inert):
    pass


class _Type(_Inert):
    pass


class CsrState(_Inert):
    """A SciPy CSR matrix as stored; `part(name)` is one of its arrays."""

    def part(self, name: str, path: Path) -> np.ndarray:
        found = self.state.get(name) if isinstance(self.state, dict) else None
        if not isinstance(found, _Array):
            raise InputError("is not a CSR matrix", file=path, dataset=name)
        return _to_array(found, path)

    def shape(self, path: Path) -> tuple[int, int]:
        state = self.state if isinstance(self.state, dict) else {}
        shape: Any = state.get("_shape", state.get("shape"))
        whole = isinstance(shape, tuple) and len(shape) == 2
        if not whole or not all(type(k) is int and 0 <= k < 1 << 31 for k in shape):
            raise InputError("is not a shape", file=path, dataset="_shape", value=str(shape)[:60])
        return shape


class _Encoded(_Inert):
    """Bytes as Python 3 stores them in Python 2's protocols: a text, and the encoding latin1."""


class _Dictionary(dict[Any, Any]):
    """A dictionary that starts empty whatever its arguments: the pickle adds entries one by one."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("collections", "defaultdict"): _Dictionary,
    ("__builtin__", "list"): _Type,
    ("builtins", "list"): _Type,
    ("_codecs", "encode"): _Encoded,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[_module, "_reconstruct"] = _Array
for _module in ("scipy.sparse.csr", "scipy.sparse._csr"):
    _ADMITTED[_module, "csr_matrix"] = CsrState


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def load_pickle(path: Path, limit: int) -> Any:
    """Return the object in a pickle: an array, a `CsrState`, or dictionaries and lists of numbers.

    Raises:
        InputError: the pickle is too large for `limit`, damaged, or holds anything else.
    """
    size = require(path).stat().st_size
    if 8 * size > limit:
        raise InputError(f"takes {human(size)}, too many for --memory", file=path)
    with open_binary(path) as file:
        data = file.read(size + 1)
    try:
        _check_operations(data)
        found = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"is not a pickle of arrays: {reason}", file=path) from None
    return _to_array(found, path) if isinstance(found, _Array) else found


def _check_operations(data: bytes) -> None:
    """Refuse operations that expand little to much: far slots, many references, stack copies."""
    references = 0
    for opcode, argument, _ in pickletools.genops(data):
        slot = int(argument or 0) if opcode.name.endswith("PUT") else 0
        if not 0 <= slot < min(_MAX_MEMO, len(data)):
            raise ValueError(f"memo slot {slot}")
        if opcode.name in _REFUSED:
            raise ValueError(f"operation {opcode.name} is not allowed")
        references += opcode.name.endswith("GET")
    if references > _MAX_REFERENCES:
        raise ValueError(f"refers {references} times to objects that it already holds")


def _to_array(array: _Array, path: Path) -> np.ndarray:
    """Return the values of a stored array, if it holds plain numbers."""
    try:
        _, shape, kind, fortran, raw = array.state
        code, order = kind.arguments[0], kind.state[1]
        dtype = np.dtype(code).newbyteorder(order if order in "<>" else "=")
        if isinstance(raw, _Encoded):
            raw = raw.arguments[0]
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(data, (bytes, bytearray)):
            raise ValueError("its data are not bytes")
        if dtype.kind not in "biuf" or len(data) != prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype}")
        values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return values.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # the file may hold any state
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"holds an array that is not of numbers: {reason}", file=path) from None


_VALID = 500
_MAX_GAP = 1 << 20


def read_planetoid(path: Path, options: ImportOptions) -> Source:
    """Return the graph of `path`: any one of its files, `DIR/ind.NAME`, or a folder with one graph.

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
                f"has {matrix.rows} rows, but there are {number} nodes and {labels.shape[0]} "
                "labels",
                file=matrix.path,
            )
    if tx.width != allx.width:
        text = f"must have as many columns as allx, {allx.width}"
        raise InputError(text, file=files["tx"], value=tx.width)
    if test.min() < allx.rows:
        raise InputError("test nodes must come after the rows of allx", file=files["tx"])
    num_nodes = int(test.max()) + 1
    labels = np.full(num_nodes, -1, np.int64)
    labels[: allx.rows], labels[test] = ally, ty
    valid = np.arange(train, min(train + _VALID, allx.rows))
    parts = {"train": np.arange(train), "valid": valid, "test": test}
    nodes = Nodes(
        features=_features(allx, tx, test, num_nodes),
        labels=Column(files["ally"], "labels", iter([labels])),
        split=NodeSplit(stem, parts),
    )
    graph = stem.with_name(f"{stem.name}.graph")
    edges = _edges(load_pickle(graph, options.limit), graph)
    notes = ["edges are stored both ways and without self-loops, as is usual for these files"]
    if absent := num_nodes - allx.rows - test.shape[0]:
        text = f"{counted(absent, 'node')} up to the last test node, {num_nodes - 1:,}"
        notes.append(f"no file has a row of {text}: no features, no label")
    return Source(
        graph,
        edges,
        num_nodes,
        nodes=nodes,
        symmetrise=True,
        self_loops="remove",
        notes=notes,
    )


def _stem(path: Path) -> Path:
    """Return the common path of the files, DIR/ind.NAME."""
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
    def load(path: Path, options: ImportOptions) -> _Csr:
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
            raise InputError("row pointers must ascend from 0 to the number of entries", file=path)
        return _Csr(path, rows, width, indptr.astype(np.int64), indices.astype(np.int64), data)


def _features(allx: _Csr, tx: _Csr, test: np.ndarray, num_nodes: int) -> SparseColumn:
    """Return rows of allx, then rows of tx in ascending order of `test`; absent rows are empty."""
    counts = np.zeros(num_nodes, np.int64)
    counts[: allx.rows] = np.diff(allx.indptr)
    lengths = np.diff(tx.indptr)
    counts[test] = lengths
    order = np.argsort(test)
    starts = np.cumsum(lengths[order]) - lengths[order]
    entries = np.arange(tx.indices.shape[0]) + np.repeat(tx.indptr[order] - starts, lengths[order])
    chunk = SparseChunk(
        counts,
        np.concatenate([allx.indices, tx.indices[entries]]),
        np.concatenate([allx.data, tx.data[entries]]),
    )
    return SparseColumn(allx.path, "features", allx.width, iter([chunk]))


def _one_hot(path: Path, options: ImportOptions) -> np.ndarray:
    """Return int64 [n] classes; -1 for a row without a 1."""
    found = load_pickle(path, options.limit)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.shape[1] == 0:
        raise InputError("must be an array of one row per node, one column per class", file=path)
    if not np.isin(found, (0, 1)).all() or (found.sum(axis=1) > 1).any():
        raise InputError("must hold at most a single 1 per row", file=path)
    return np.where(found.any(axis=1), found.argmax(axis=1), -1)


def _edges(graph: Any, path: Path) -> Iterator[EdgeChunk]:
    if not isinstance(graph, dict) or not all(isinstance(row, list) for row in graph.values()):
        raise InputError("must be a dictionary of lists of neighbours", file=path)
    nodes = list(graph)
    neighbours = [node for row in graph.values() for node in row]
    if not all(type(node) is int and abs(node) < 1 << 62 for node in (*nodes, *neighbours)):
        raise InputError("must name nodes by integers", file=path)
    counts = [len(row) for row in graph.values()]
    source = np.repeat(np.array(nodes, np.int64), counts)
    yield EdgeChunk(
        source,
        np.array(neighbours, np.int64),
        place=lambda k: f"neighbours of node {source[k]}",
    )
