"""The labels of the nodes: a class for each, or several labels at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcgnn.storage.importers.column_checks import add_counts, check_bounds, counted
from hpcgnn.storage.importers.source import Column, as_integers

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
