"""A folder for each type of nodes and of edges.

nodes/TYPE/      num_nodes (a number), features, labels, train, valid, test (node numbers, or masks
                 in .npy), and NAME for named arrays, which all types must have
edges/A___R___B/ edges [2, E] or [E, 2], weight [E], features [E, D], labels [E] or [E, W] (.npy),
                 split [E]

Each is NAME.npy, NAME.csv or NAME.csv.gz. Nodes are numbered from 0 within their type.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.opening import reading
from hpcgnn.storage.importers.pairs import edges_from, pair_column
from hpcgnn.storage.importers.source import (
    Column,
    ImportOptions,
    NodeSplit,
    Source,
    as_ids,
    as_integers,
)
from hpcgnn.storage.importers.text import matrix_rows
from hpcgnn.storage.importers.typed import EdgeType, TypedEdges, TypedNodes, join

SETS = ("train", "valid", "test")
_ENDINGS = (".npy", ".csv", ".csv.gz")
_OF_EDGES = ("edges", "weight", "features", "labels", "split")


def is_type_folders(path: Path) -> bool:
    return (path / "nodes").is_dir() and (path / "edges").is_dir()


def read_type_folders(path: Path, options: ImportOptions) -> Source:
    """Types in the order of their names.

    Raises:
        InputError: no such folders, files that are damaged or disagree.
    """
    if not is_type_folders(path):
        raise InputError("has no folders nodes/ and edges/", file=path)
    nodes = {folder.name: _nodes(folder, options) for folder in _folders(path / "nodes")}
    edges = [_edges(folder, options) for folder in _folders(path / "edges")]
    if not nodes:
        raise InputError("has no type of nodes", file=path / "nodes")
    return join(path, nodes, edges)


def _folders(path: Path) -> list[Path]:
    with reading(path):
        return sorted(folder for folder in path.iterdir() if folder.is_dir())


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by the name of their column."""
    found: dict[str, Path] = {}
    with reading(folder):
        for file in sorted(folder.iterdir()):
            ending = next((end for end in _ENDINGS[::-1] if file.name.endswith(end)), None)
            if ending is None:
                raise InputError("is none of .npy, .csv and .csv.gz", file=file)
            name = file.name.removesuffix(ending)
            if name in found:
                raise InputError(f"{name} is there twice", file=file)
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
    """What num_nodes says, or the rows of the first column of the nodes."""
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
    raise InputError("says nowhere how many nodes there are: add num_nodes.csv", file=folder)


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
        raise InputError("must be .npy, which says whether they are classes", file=files["labels"])
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
    """A column of integers, or booleans, that is held in memory."""
    if file.suffix == ".npy":
        return ArraySource(file).load(options.limit)
    parts, held = [], 0
    for rows in matrix_rows(file):
        parts.append(as_integers(rows.reshape(-1), Column(file, "values", iter(()))))
        held += parts[-1].nbytes
        if held > options.limit:
            raise InputError("takes more memory than fits: raise --memory", file=file)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
