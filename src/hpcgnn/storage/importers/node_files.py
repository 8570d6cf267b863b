"""Files that hold one column of the nodes each, and how they go with a source."""

from __future__ import annotations

from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.npz import read_sparse_features, read_split
from hpcgnn.storage.importers.source import (
    ImportOptions,
    Nodes,
    NodeSplit,
    Source,
)


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
    """The columns in these files (.npy; features also .npz of `scipy.sparse.save_npz`; split also
    .npz with `train`, `valid`, `test`), and the number of nodes they speak of.

    Raises:
        InputError: unreadable, or files that disagree on the number of nodes.
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
        nodes.notes += [f"{split}: {note}" for note in notes]
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
    """Give the source these columns, and settle the number of nodes.

    Raises:
        InputError: the columns, the source and `options.num_nodes` disagree.
    """
    wanted = known if options.num_nodes is None else options.num_nodes
    for number, whose in ((known, "the files of node columns"), (source.num_nodes, "the source")):
        if None not in (number, wanted) and number != wanted:
            raise InputError(f"{whose} speak of {number} nodes, not {wanted}", file=source.file)
    if source.num_nodes is None and nodes.ids is None:
        source.num_nodes = wanted
    source.nodes.update(nodes)
