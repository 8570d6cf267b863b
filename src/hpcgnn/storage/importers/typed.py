"""Graphs with nodes and edges given by type, each numbered from 0, and folders of such types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.listed_ids import ListedNames
from hpcgnn.storage.importers.opening import reading
from hpcgnn.storage.importers.pairs import edges_from, pair_column
from hpcgnn.storage.importers.source import (
    Column,
    EdgeChunk,
    ImportOptions,
    Nodes,
    NodeSplit,
    Source,
    as_ids,
    as_integers,
)
from hpcgnn.storage.importers.text import matrix_rows

_ROWS = 1 << 18
EdgeType = tuple[str, str, str]  # type of the sources, relation, type of the destinations
SETS = ("train", "valid", "test")
_ENDINGS = (".npy", ".csv", ".csv.gz")
_OF_EDGES = ("edges", "weight", "features", "labels", "split")


@dataclass
class TypedNodes:
    """The `count` nodes of one type; their split is in rows within the type."""

    count: int
    features: Column | None = None
    labels: Column | None = None
    split: NodeSplit | None = None
    arrays: dict[str, Column] = field(default_factory=dict)
    names: ListedNames | None = None


@dataclass
class TypedEdges:
    """The edges of one type; their ends are rows within the node types."""

    name: EdgeType
    chunks: Iterator[EdgeChunk]


def join(
    file: Path,
    nodes: dict[str, TypedNodes],
    edges: list[TypedEdges],
    *,
    labels_as: str | None = None,
    notes: Iterable[str] = (),
) -> Source:
    """Return all types as one source, which keeps their names; nodes are named TYPE/ROW or TYPE/ID.

    Raises:
        InputError: an edge type names an unknown node type, or several node types have labels.
    """
    notes = list(notes)
    counts = [kind.count for kind in nodes.values()]
    firsts = dict(zip(nodes, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
    total = sum(counts)
    for one in edges:
        for end in (one.name[0], one.name[2]):
            if end not in nodes:
                raise InputError("there is no node type of this name", file=file, value=end)
    joined = Nodes(labels_as=labels_as, notes=notes)
    joined.types = Column(file, "types of the nodes", _types(counts))
    joined.names = _TypedNames(nodes)
    for number, kind in enumerate(nodes.values()):
        if kind.features is not None and kind.count:
            joined.typed_features[number] = kind.features
    for what in ("labels", "split"):
        having = [name for name, kind in nodes.items() if getattr(kind, what) is not None]
        if len(having) > 1:
            raise InputError(
                f"{what} for several node types, but only one is trained on: leave the others out",
                file=file,
                value=having,
            )
        for name in having:
            first, count = firsts[name], nodes[name].count
            if what == "labels":
                joined.labels = _padded(nodes[name].labels, first, count, total)  # type: ignore[arg-type]
            else:
                joined.split = _moved(nodes[name].split, first, count, total)  # type: ignore[arg-type]
    _join_arrays(file, nodes, joined)
    return Source(
        file,
        _chunks(edges, nodes, firsts),
        num_nodes=total,
        num_relations=len(edges),
        rows_as_given=True,
        nodes=joined,
        type_names={"node_types": list(nodes), "edge_types": [list(one.name) for one in edges]},
    )


@dataclass(frozen=True)
class _TypedNames:
    """Names such as `paper/17`: the type of each node and its name or row within the type."""

    nodes: dict[str, TypedNodes]

    def names(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for kind, nodes in self.nodes.items():
            own = range(nodes.count) if nodes.names is None else nodes.names.texts
            for low in range(0, nodes.count, _ROWS):
                texts = [f"{kind}/{name}".encode() for name in own[low : low + _ROWS]]
                lengths = np.array([len(text) for text in texts], np.int64)
                yield lengths, np.frombuffer(b"".join(texts), np.uint8)


def _types(counts: list[int]) -> Iterator[np.ndarray]:
    for number, count in enumerate(counts):
        for low in range(0, count, _ROWS):
            yield np.full(min(_ROWS, count - low), number)


def _padded(column: Column, first: int, count: int, total: int) -> Column:
    """Return the column of one type, with unknown values for all other nodes."""

    def unknown(like: np.ndarray, number: int) -> Iterator[np.ndarray]:
        value = np.nan if like.dtype.kind == "f" else -1
        dtype = like.dtype if like.dtype.kind == "f" else np.int64
        for low in range(0, number, _ROWS):
            yield np.full((min(_ROWS, number - low), *like.shape[1:]), value, dtype)

    def chunks() -> Iterator[np.ndarray]:
        last, found = np.empty(0, np.int64), 0
        for rows in column.chunks:
            if not found:
                yield from unknown(rows, first)
            last, found = rows, found + len(rows)
            yield rows
        if found != count:
            raise column.error(f"must have a row for each of {count} nodes", found)
        yield from unknown(last, total - first - count)

    return Column(column.file, column.name, chunks())


def _moved(split: NodeSplit, first: int, count: int, total: int) -> NodeSplit:
    """Return the split of one type as rows of the whole graph."""

    def widened(values: np.ndarray) -> np.ndarray:
        if values.ndim not in (1, 2) or len(values) != count:
            raise InputError(
                f"must have a row for each of {count} nodes", file=split.file, value=values.shape
            )
        out = np.zeros((total, *values.shape[1:]), values.dtype)
        out[first : first + count] = values
        return out

    if split.codes is not None:
        return NodeSplit(split.file, codes=widened(split.codes))
    parts = {}
    for name, values in split.parts.items():
        if name in split.masks or values.dtype.kind == "b":
            parts[name] = widened(values)
            continue
        wrong = values[(values < 0) | (values >= count)]
        if wrong.size:
            raise InputError(
                f"nodes of this type are 0 .. {count - 1}",
                file=split.file,
                dataset=name,
                value=int(wrong.flat[0]),
            )
        parts[name] = values.astype(np.int64) + first
    return NodeSplit(split.file, parts, split.masks)


def _join_arrays(file: Path, nodes: dict[str, TypedNodes], joined: Nodes) -> None:
    """Join the arrays that every node type has; a note lists those that some types lack."""
    everywhere = set.intersection(*(set(kind.arrays) for kind in nodes.values()))
    for name in sorted(everywhere):
        columns = [kind.arrays[name] for kind in nodes.values()]
        chunks = (rows for column in columns for rows in column.chunks)
        joined.arrays[name] = Column(file, name, chunks)
    some = sorted({name for kind in nodes.values() for name in kind.arrays} - everywhere)
    if some:
        joined.notes.append(f"ignored, since some node types have none: {', '.join(some)}")


def _place(kind: str, place: Callable[[int], str], k: int) -> str:
    return f"{kind}, {place(k)}"


def _chunks(
    edges: list[TypedEdges], nodes: dict[str, TypedNodes], firsts: dict[str, int]
) -> Iterator[EdgeChunk]:
    for number, one in enumerate(edges):
        ends = {"source": one.name[0], "destination": one.name[2]}
        shown = " ".join(one.name)
        for chunk in one.chunks:
            for side, kind in ends.items():
                values, count = getattr(chunk, side), nodes[kind].count
                bad = (values < 0) | (values >= count)
                if bad.any():
                    k = int(np.argmax(bad))
                    raise InputError(
                        f"{side} of {shown} at {chunk.place(k)} must lie in 0 .. {count - 1}",
                        value=int(values[k]),
                    )
                setattr(chunk, side, values + firsts[kind])
            chunk.place = partial(_place, shown, chunk.place)
            chunk.relation = np.full(len(chunk.source), number)
            yield chunk


def is_type_folders(path: Path) -> bool:
    return (path / "nodes").is_dir() and (path / "edges").is_dir()


def read_type_folders(path: Path, options: ImportOptions) -> Source:
    """Return the graph in folders of types; types are ordered by name.

    Raises:
        InputError: the folders don't exist, or files are damaged or disagree.
    """
    if not is_type_folders(path):
        raise InputError("has no folders nodes/ and edges/", file=path)
    nodes = {folder.name: _nodes(folder, options) for folder in _folders(path / "nodes")}
    edges = [_edges(folder, options) for folder in _folders(path / "edges")]
    if not nodes:
        raise InputError("has no node type", file=path / "nodes")
    return join(path, nodes, edges)


def _folders(path: Path) -> list[Path]:
    with reading(path):
        return sorted(folder for folder in path.iterdir() if folder.is_dir())


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by the name of their column."""
    found: dict[str, Path] = {}
    with reading(folder):
        for file in sorted(folder.iterdir()):
            ending = next((end for end in _ENDINGS[::-1] if file.name.endswith(end)), None)
            if ending is None:
                raise InputError("is not .npy, .csv or .csv.gz", file=file)
            name = file.name.removesuffix(ending)
            if name in found:
                raise InputError(f"{name} exists twice", file=file)
            found[name] = file
    return found


def _nodes(folder: Path, options: ImportOptions) -> TypedNodes:
    files = _files(folder)
    columns = {
        name: _column(file, options)
        for name, file in files.items()
        if name not in ("num_nodes", *SETS)
    }
    kind = TypedNodes(_count(folder, files, options))
    kind.features, kind.labels = columns.pop("features", None), columns.pop("labels", None)
    kind.arrays = columns
    parts = {part: _whole(files[part], options) for part in SETS if part in files}
    if parts:
        kind.split = NodeSplit(folder, parts)
    return kind


def _count(folder: Path, files: dict[str, Path], options: ImportOptions) -> int:
    """Return the number in num_nodes, or the number of rows of the first node column."""
    if "num_nodes" in files:
        found = _whole(files["num_nodes"], options).reshape(-1)
        if found.shape != (1,) or not 0 <= found[0] < 1 << 56 or found[0] != int(found[0]):
            raise InputError("must hold the number of nodes", file=files["num_nodes"])
        return int(found[0])
    for name, file in files.items():
        if name not in SETS:
            if file.suffix == ".npy":
                return int((*ArraySource(file).shape, 0)[0])
            return sum(len(rows) for rows in matrix_rows(file))
    raise InputError("doesn't give the number of nodes: add num_nodes.csv", file=folder)


def _edges(folder: Path, options: ImportOptions) -> TypedEdges:
    parts = folder.name.split("___")
    if len(parts) != 3 or not all(parts):
        raise InputError("must be named SOURCE___RELATION___DESTINATION", file=folder)
    name: EdgeType = (parts[0], parts[1], parts[2])
    files = _files(folder)
    for other in sorted(files.keys() - set(_OF_EDGES)):
        raise InputError(f"must be one of {', '.join(_OF_EDGES)}", file=files[other])
    if "edges" not in files:
        raise InputError("has no edges: edges.npy or edges.csv is needed", file=folder)
    file = files["edges"]
    if file.suffix == ".npy":
        ends = pair_column(ArraySource(file), options.limit)
    else:
        ends = Column(file, "edges", _pairs(file))
    if "labels" in files and files["labels"].suffix != ".npy":
        raise InputError(
            "must be .npy, whose type shows whether they are classes", file=files["labels"]
        )
    columns = {
        name: _column(files[name], options, flat=name in ("weight", "split"))
        for name in _OF_EDGES[1:]
        if name in files
    }
    return TypedEdges(name, edges_from(ends, **columns))


def _pairs(file: Path) -> Iterator[np.ndarray]:
    column = Column(file, "edges", iter(()))
    for rows in matrix_rows(file):
        if rows.shape[1] != 2:
            raise column.error("must have two columns: source and destination", rows.shape[1])
        yield as_ids(rows, column)


def _column(file: Path, options: ImportOptions, *, flat: bool = False) -> Column:
    if file.suffix == ".npy":
        array = ArraySource(file)
        if array.ndim == 0:
            raise array.error("must have a value or a row for each", array.shape)
        return array.column(options.limit)
    rows = matrix_rows(file)
    return Column(file, "values", (r[:, 0] if flat and r.shape[1] == 1 else r for r in rows))


def _whole(file: Path, options: ImportOptions) -> np.ndarray:
    """Return a column of integers, or booleans, loaded into memory."""
    if file.suffix == ".npy":
        return ArraySource(file).load(options.limit)
    parts, held = [], 0
    for rows in matrix_rows(file):
        parts.append(as_integers(rows.reshape(-1), Column(file, "values", iter(()))))
        held += parts[-1].nbytes
        if held > options.limit:
            raise InputError("takes more memory than is allowed: raise --memory", file=file)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
