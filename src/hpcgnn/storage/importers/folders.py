"""Folders of files that form a graph: GraphSAINT's, DGL's Reddit, and one file per node column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError, counted
from hpcgnn.settings import named_once
from hpcgnn.storage.importers.arrays import Archive, ArraySource
from hpcgnn.storage.importers.csr import scipy_matrix
from hpcgnn.storage.importers.npz import read_sparse_features, read_split
from hpcgnn.storage.importers.opening import open_binary
from hpcgnn.storage.importers.pairs import edges_from
from hpcgnn.storage.importers.source import (
    Column,
    ImportOptions,
    Nodes,
    NodeSplit,
    NoteOn,
    Source,
)

_JSON = 24  # memory that parsed JSON takes, as a multiple of the file's size
_ROLES = {"tr": "train", "va": "valid", "te": "test"}


def read_node_files(
    *,
    features: Path | None = None,
    typed_features: dict[int, Path] | None = None,
    labels: Path | None = None,
    split: Path | None = None,
    types: Path | None = None,
    ids: Path | None = None,
    labels_as: str | None = None,
    arrays: dict[str, Path] | None = None,
    options: ImportOptions,
) -> tuple[Nodes, int | None]:
    """Return the node columns in these files, and the number of nodes that they have.

    Files are .npy; features may also be .npz of `scipy.sparse.save_npz`, and the split .npz with
    `train`, `valid`, `test`.

    Raises:
        InputError: a file can't be read, or files disagree on the number of nodes.
    """
    nodes = Nodes(labels_as=labels_as)
    known: dict[Path, int] = {}
    if features is not None and features.suffix == ".npz":
        nodes.features, known[features] = read_sparse_features(features, options)
        features = None
    for name, path in (("features", features), ("labels", labels), ("types", types), ("ids", ids)):
        if path is not None:
            array = _array(path)
            known[path] = array.shape[0]
            setattr(nodes, name, array.column(options.limit))
    for kind, path in (typed_features or {}).items():
        nodes.typed_features[kind] = _array(path).column(options.limit)
    for name, path in (arrays or {}).items():
        array = _array(path)
        known[path] = array.shape[0]
        nodes.arrays[name] = array.column(options.limit)
    if split is not None and split.suffix == ".npz":
        nodes.split, notes = read_split(split, options)
        nodes.notes += [NoteOn(split, note) for note in notes]
    elif split is not None:
        array = _array(split)
        known[split] = array.shape[0]
        if array.dtype.kind == "b":
            raise array.error("holds booleans: codes 0 none, 1 train, 2 valid, 3 test are needed")
        nodes.split = NodeSplit(split, codes=array.load(options.limit))
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{path.name} {number}" for path, number in known.items())
        raise InputError(f"the files disagree on the number of nodes: {listed}")
    return nodes, next(iter(known.values()), None)


def _array(path: Path) -> ArraySource:
    array = ArraySource(path)
    if array.ndim == 0:
        raise array.error("must have a value or a row for each node", array.shape)
    return array


def attach(source: Source, nodes: Nodes, known: int | None, options: ImportOptions) -> None:
    """Add these node columns to the source, in place of its own, and settle the number of nodes.

    Raises:
        InputError: the columns, the source and `options.num_nodes` disagree.
    """
    wanted = known if options.num_nodes is None else options.num_nodes
    for number, whose in ((known, "the files of node columns"), (source.num_nodes, "the source")):
        if number is not None and wanted is not None and number != wanted:
            raise InputError(
                f"{whose} describe {counted(number, 'node')}, not {wanted}", file=source.file
            )
    listed = source.nodes.ids is not None  # by a table of the nodes, or as texts at ends of edges
    if known is not None and source.names is not None and not source.lists_nodes:
        raise InputError(
            "names its nodes by texts, so that files with a row for each node can't be matched: "
            "list the nodes in a table, --nodes TABLE",
            file=source.file,
        )
    if source.num_nodes is None and nodes.ids is None and (not listed or options.num_nodes):
        source.num_nodes = wanted
    made = source.nodes.split_ratio is not None
    if made and source.nodes.split is not None:
        source.notes.append("its own split is ignored because of --split-ratio")
        source.nodes.split = None
    source.nodes.update(nodes)
    if made and source.nodes.split is not None:
        raise InputError("give --split or --split-ratio", file=source.nodes.split.file)
    if made and source.nodes.labels is None:
        raise InputError("has no labels to make a split from: give --labels", file=source.file)


def is_graphsaint(folder: Path) -> bool:
    return (folder / "adj_full.npz").exists()


def is_reddit(folder: Path) -> bool:
    return (folder / "reddit_graph.npz").exists()


def read_graphsaint(folder: Path, options: ImportOptions) -> Source:
    """Read adj_full.npz (of `scipy.sparse.save_npz`), feats.npy, class_map.json and role.json.

    Raises:
        InputError: a file is missing, damaged or does not fit the others.
    """
    source = _matrix(folder / "adj_full.npz", options)
    number = source.num_nodes or 0
    nodes = source.nodes
    if (folder / "feats.npy").exists():
        nodes.features = _rows(ArraySource(folder / "feats.npy"), number, options)
        source.notes.append(
            "features are read as they are; GraphSAINT standardises them over the training nodes"
        )
    if (folder / "class_map.json").exists():
        nodes.labels, nodes.labels_as = _class_map(folder / "class_map.json", number, options)
    if (folder / "role.json").exists():
        nodes.split = _roles(folder / "role.json", options)
    used = {"adj_full.npz", "feats.npy", "class_map.json", "role.json"}
    others = sorted({path.name for path in folder.iterdir()} - used)
    if others:
        source.notes.append(f"ignored: {', '.join(others)}")
    return source


def read_reddit(folder: Path, options: ImportOptions) -> Source:
    """Read reddit_graph.npz (a matrix) and reddit_data.npz: feature, label, node_types (1, 2, 3).

    Raises:
        InputError: a file is missing, damaged or does not fit the other.
    """
    source = _matrix(folder / "reddit_graph.npz", options)
    number = source.num_nodes or 0
    data = Archive(folder / "reddit_data.npz")
    source.nodes.features = _rows(data["feature"], number, options)
    source.nodes.labels = _rows(data["label"], number, options)
    source.nodes.split = NodeSplit(data.path, codes=data["node_types"].load(options.limit))
    source.notes += data.left_out({"feature", "label", "node_types"})
    return source


def _matrix(path: Path, options: ImportOptions) -> Source:
    archive = Archive(path)
    ends, weight, number = scipy_matrix(archive, options)
    return Source(path, edges_from(ends, weight=weight), number, nodes=Nodes())


def _rows(array: ArraySource, number: int, options: ImportOptions) -> Column:
    if array.ndim == 0 or array.shape[0] != number:
        raise array.error(f"must have a row for each of the {number} nodes", array.shape)
    return array.column(options.limit)


def _load(path: Path, options: ImportOptions) -> dict[str, Any]:
    """Return the JSON object in a file."""
    with open_binary(path) as file:
        data = file.read(options.limit // _JSON + 1)
    if len(data) > options.limit // _JSON:
        raise InputError("takes more memory than is allowed: raise --memory", file=path)
    try:
        found = json.loads(data, object_pairs_hook=named_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {str(error)[:80]}", file=path) from None
    if not isinstance(found, dict):
        raise InputError("must hold a JSON object", file=path)
    return found


def _class_map(path: Path, number: int, options: ImportOptions) -> tuple[Column, str]:
    """Return labels by node number, and whether they are "classes" or "several" labels per node."""
    found = _load(path, options)
    first = next(iter(found.values()), 0)
    several, width = isinstance(first, list), len(first) if isinstance(first, list) else 1
    labels = np.full((number, width) if several else number, -1, np.int64)
    seen = np.zeros(number, bool)
    for name, value in found.items():
        row = _index(name, number, path)
        if seen[row]:
            raise InputError("this node occurs twice", file=path, dataset=name)
        seen[row] = True
        if isinstance(value, list) != several or (several and len(value) != width):
            raise InputError("must hold labels of the same form", file=path, dataset=name)
        if not all(type(v) is int for v in (value if several else [value])):
            raise InputError("must hold integers", file=path, dataset=name, value=str(value)[:60])
        labels[row] = np.clip(value, -1, 1 << 31)
    return Column(path, "labels", iter([labels])), "several" if several else "classes"


def _roles(path: Path, options: ImportOptions) -> NodeSplit:
    found = _load(path, options)
    parts = {}
    for name, part in _ROLES.items():
        values = found.get(name)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise InputError("must be a list of node numbers", file=path, dataset=name)
        parts[part] = np.clip(np.array(values, dtype=object), -1, 1 << 62).astype(np.int64)
    return NodeSplit(path, parts)


def _index(name: str, number: int, path: Path) -> int:
    if not (name.isascii() and name.isdecimal() and int(name[:19]) < number):
        raise InputError(f"nodes are numbered 0 .. {number - 1}", file=path, value=name)
    return int(name)
