"""The labels of the nodes: a class for each, or several labels at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.columns import add_counts, check_bounds, counted
from hpcgnn.storage.importers.npz import read_sparse_features, read_split
from hpcgnn.storage.importers.source import Column, Nodes, Options, Source, Split, as_integers

MAX_CLASSES = 1 << 20
_ROWS = 1 << 18


def label_pieces(
    column: Column, num_nodes: int, labels_as: str | None, notes: list[str]
) -> Iterator[np.ndarray]:
    """int64 [n] classes or [n, T] labels; nothing where every label is unknown.

    Args:
        labels_as: see `Nodes`.
        notes: takes one on classes that no node has.

    Raises:
        InputError: another shape, a value that is no label, or a matrix that may be one-hot.
    """
    unknown = 0
    population = np.zeros(0, np.int64)
    single, positive = labels_as is None, False
    for rows in counted(column, num_nodes):
        if rows.ndim == 2 and rows.shape[1] == 1 and labels_as != "several":
            rows = rows[:, 0]
        if rows.ndim not in (1, 2) or rows.shape[1:] == (0,):
            raise column.error("labels must have shape [nodes] or [nodes, labels]", rows.shape)
        if labels_as is not None and (rows.ndim == 1) != (labels_as == "classes"):
            raise column.error(f"is not what --labels-as {labels_as} means", rows.shape)
        labels = as_integers(rows, column)
        check_bounds(
            labels, -1, MAX_CLASSES if labels.ndim == 1 else 2, column, "labels (-1: unknown)"
        )
        if labels.ndim == 2:
            single = single and _at_most_one(labels)
            positive = positive or bool((labels == 1).any())
            if labels_as == "one-hot":
                labels = _classes(labels, column)
        if labels.ndim == 1:
            population = add_counts(population, np.bincount(labels[labels >= 0]))
            if unknown >= 0 and labels.max(initial=-1) < 0:
                unknown += labels.shape[0]
                continue
            for low in range(0, unknown, _ROWS):
                yield np.full(min(_ROWS, unknown - low), -1)
            unknown = -1
        yield labels
    if single and positive:
        raise column.error(
            "no row holds more than a single 1: say --labels-as one-hot if these are classes, or"
            " --labels-as several if a node may have several labels"
        )
    empty = np.flatnonzero(population == 0)
    if empty.shape[0]:
        notes.append(
            f"no node has class {empty[0]}"
            + (f" or {empty.shape[0] - 1} others" if empty.shape[0] > 1 else "")
            + f" of the {population.shape[0]} classes 0 .. {population.shape[0] - 1}"
        )


def _at_most_one(labels: np.ndarray) -> bool:
    """Each row has a single 1 and zeros, zeros alone, or is unknown as a whole."""
    unknown = labels < 0
    whole = unknown.all(axis=1) | ~unknown.any(axis=1)
    return bool((whole & ((labels == 1).sum(axis=1) <= 1)).all())


def _classes(labels: np.ndarray, column: Column) -> np.ndarray:
    """int64 [n]: the place of the 1 in each row, -1 where there is none."""
    if not _at_most_one(labels):
        raise column.error("is not one-hot: a row holds several, or some of it is unknown")
    ones = labels == 1
    return np.where(ones.any(axis=1), ones.argmax(axis=1), -1)


def read_node_files(
    *,
    features: Path | None = None,
    typed_features: dict[int, Path] | None = None,
    labels: Path | None = None,
    split: Path | None = None,
    types: Path | None = None,
    ids: Path | None = None,
    labels_as: str | None = None,
    options: Options,
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
    if split is not None and split.suffix == ".npz":
        nodes.split, notes = read_split(split, options)
        nodes.notes += [f"{split}: {note}" for note in notes]
    elif split is not None:
        array = _array(split)
        known[split] = array.shape[0]
        if array.dtype.kind == "b":
            raise array.error("holds booleans: codes 0 none, 1 train, 2 valid, 3 test are needed")
        nodes.split = Split(split, codes=array.load(options.limit))
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{path.name} {number}" for path, number in known.items())
        raise InputError(f"the files disagree on the number of nodes: {listed}")
    return nodes, next(iter(known.values()), None)


def _array(path: Path) -> ArraySource:
    array = ArraySource(path)
    if array.ndim == 0:
        raise array.error("must have a value or a row for each node", array.shape)
    return array


def attach(source: Source, nodes: Nodes, known: int | None, options: Options) -> None:
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
