"""Checking and writing the columns of the nodes: features, labels, split, types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.checks import Place
from hpcgnn.storage.importers.made_split import Known
from hpcgnn.storage.importers.source import (
    Column,
    Nodes,
    NodeSplit,
    NoteOn,
    SparseChunk,
    SparseColumn,
    as_integers,
)
from hpcgnn.storage.importers.spool import Scratch
from hpcgnn.storage.schema import as_labels
from hpcgnn.storage.write.graph_writer import GraphWriter


def counted(column: Column, num_nodes: int) -> Iterator[np.ndarray]:
    """Yield the column's chunks, checking that it has exactly `num_nodes` rows."""
    count = 0
    for rows in column.chunks:
        count += rows.shape[0]
        if count > num_nodes:
            break
        yield rows
    if count != num_nodes:
        more = "more" if count > num_nodes else "fewer"
        raise column.error(f"has {more} rows than there are nodes ({num_nodes})", count)


def check_bounds(values: np.ndarray, low: int, high: int, column: Column, what: str) -> None:
    """Raise InputError unless all values lie in `low .. high - 1`."""
    bad = (values < low) | (values >= high)
    if bad.any():
        raise column.error(f"{what} lie in {low} .. {high - 1}", values[bad].flat[0])


def add_counts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the int64 sums of two arrays of counts, padding the shorter one with zeros."""
    out = np.zeros(max(a.shape[0], b.shape[0]), np.int64)
    out[: a.shape[0]] += a
    out[: b.shape[0]] += b
    return out


MAX_CLASSES = 1 << 20
MAX_TYPES = 1 << 16
_ROWS = 1 << 18
_CODES = {"train": 1, "valid": 2, "test": 3}


def write_nodes(
    writer: GraphWriter, nodes: Nodes, num_nodes: int, scratch: Scratch, *, normalise: bool
) -> None:
    """Write all columns except original ids; `normalise` divides each row of features by its sum.

    Raises:
        InputError: a column has not `num_nodes` rows, or holds an invalid value.
    """
    known = None if nodes.split_ratio is None else Known(scratch)
    if isinstance(nodes.features, SparseColumn):
        for chunk in _sparse_features(nodes.features, num_nodes, normalise):
            width = nodes.features.width
            writer.append_sparse_features(chunk.counts, chunk.indices, chunk.data, width)
    elif nodes.features is not None:
        for rows in _features(nodes.features, num_nodes, normalise):
            writer.append_features(rows)
    if nodes.labels is not None:
        for rows in label_chunks(nodes.labels, num_nodes, nodes.labels_as, nodes.notes):
            writer.append_labels(rows)
            if known is not None:
                known.add(rows)
        if known is not None and nodes.split_ratio is not None:
            if not known.count:
                raise nodes.labels.error("no node has a label to make a split from")
            made = known.split(nodes.split_ratio, nodes.split_seed)
            file = nodes.labels.file
            nodes.split = NodeSplit(file, column=Column(file, "split", made))
    for name, column in nodes.arrays.items():
        for rows in counted(column, num_nodes):
            writer.append_array(name, rows)
    if nodes.split is not None:
        population = np.zeros(4, np.int64)
        for rows in split_codes(nodes.split, num_nodes):
            population += np.bincount(rows[:, 0], minlength=4)
            writer.append_split(rows)
        if not population[1:].all():
            none, train, valid, test = population
            text = (
                f"the split has {train} nodes for training, {valid} for validation, {test} for"
                f" testing, and leaves out {none}"
            )
            nodes.notes.append(NoteOn(None, text))
    _write_types(writer, nodes, num_nodes, normalise)


def _write_types(writer: GraphWriter, nodes: Nodes, num_nodes: int, normalise: bool) -> None:
    if nodes.types is None:
        for column in nodes.typed_features.values():
            raise column.error("features by type need the node types: give these too")
        return
    population = np.zeros(0, np.int64)
    for rows in counted(nodes.types, num_nodes):
        types = _vector(as_integers(rows, nodes.types), nodes.types)
        check_bounds(types, 0, MAX_TYPES, nodes.types, "node types")
        writer.append_types(types)
        population = add_counts(population, np.bincount(types))
    for kind, column in sorted(nodes.typed_features.items()):
        if kind >= population.shape[0]:
            raise column.error("has features of a type that no node has", kind)
        for rows in _features(column, int(population[kind]), normalise):
            writer.append_typed_features(kind, rows)


def _features(column: Column, num_nodes: int, normalise: bool) -> Iterator[np.ndarray]:
    first = 0
    for rows in counted(column, num_nodes):
        if rows.ndim == 1:
            rows = rows[:, None]
        if rows.ndim != 2 or rows.dtype.kind not in "biuf" or rows.shape[1] == 0:
            raise column.error("features must be numbers of shape [nodes, width]", rows.shape)
        out = rows if rows.dtype == np.float16 else _float32(rows)
        _check_finite(out, rows, column, first)
        if normalise:
            total = np.abs(out).sum(axis=1, keepdims=True, dtype=np.float64)
            out = (out / np.where(total == 0, 1, total)).astype(out.dtype)
        first += rows.shape[0]
        yield out


def _sparse_features(
    column: SparseColumn, num_nodes: int, normalise: bool
) -> Iterator[SparseChunk]:
    count = 0
    for chunk in column.chunks:
        rows = np.repeat(np.arange(chunk.counts.shape[0]), chunk.counts)
        bad = (chunk.indices < 0) | (chunk.indices >= column.width)
        if bad.any():
            k = int(np.argmax(bad))
            raise column.error(
                f"row {count + rows[k]}: columns are 0 .. {column.width - 1}", chunk.indices[k]
            )
        _check_columns_differ(column, chunk, rows, count)
        data = _float32(chunk.data)
        wrong = ~np.isfinite(data)
        if wrong.any():
            k = int(np.argmax(wrong))
            raise column.error(f"row {count + rows[k]} is not a finite float32", chunk.data[k])
        if normalise:
            total = np.bincount(rows, np.abs(data), minlength=chunk.counts.shape[0])
            data = (data / np.where(total == 0, 1, total)[rows]).astype(np.float32)
        count += chunk.counts.shape[0]
        yield SparseChunk(chunk.counts, chunk.indices, data)
    if count != num_nodes:
        raise column.error(f"does not have as many rows as there are nodes ({num_nodes})", count)


def _check_columns_differ(
    column: SparseColumn, chunk: SparseChunk, rows: np.ndarray, first: int
) -> None:
    """Check that no row lists a column twice: some tools sum duplicates, others keep one."""
    entries = rows * np.int64(column.width) + chunk.indices
    if (entries[1:] > entries[:-1]).all():
        return
    entries.sort()
    twice = entries[1:] == entries[:-1]
    if twice.any():
        row, place = divmod(int(entries[np.argmax(twice)]), column.width)
        raise column.error(
            f"row {first + row} lists column {place} twice: call matrix.sum_duplicates() before"
            " storing it"
        )


def label_chunks(
    column: Column, num_nodes: int, labels_as: str | None, notes: list[str]
) -> Iterator[np.ndarray]:
    """Yield int64 [n] classes, [n, T] labels or float32 values; nothing if every class is unknown.

    Args:
        labels_as: see `Nodes`.
        notes: receives a note about classes that no node has.

    Raises:
        InputError: the shape is wrong, a value is not a label, or a matrix may be one-hot.
    """
    unknown = 0
    population = np.zeros(0, np.int64)
    single, positive = labels_as is None, False
    for rows in counted(column, num_nodes):
        if labels_as == "values":
            yield as_labels(rows.astype(np.float32), Place(column.file, column.name))
            continue
        if rows.ndim == 2 and rows.shape[1] == 1 and labels_as != "several":
            rows = rows[:, 0]
        if rows.ndim not in (1, 2) or rows.shape[1:] == (0,):
            raise column.error("labels must have shape [nodes] or [nodes, labels]", rows.shape)
        if labels_as is not None and (rows.ndim == 1) != (labels_as == "classes"):
            raise column.error(f"does not fit --labels-as {labels_as}", rows.shape)
        labels = _whole_labels(rows, column)
        check_bounds(
            labels, -1, MAX_CLASSES if labels.ndim == 1 else 2, column, "labels (-1: unknown)"
        )
        if labels.ndim == 2:
            single = single and at_most_one(labels)
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
            "no row holds more than a single 1: use --labels-as one-hot if these are classes, or "
            "--labels-as several if a node may have several labels"
        )
    empty = np.flatnonzero(population == 0)
    if empty.shape[0]:
        notes.append(
            f"no node has class {empty[0]}"
            + (f" or {empty.shape[0] - 1} others" if empty.shape[0] > 1 else "")
            + f" of the {population.shape[0]} classes 0 .. {population.shape[0] - 1}"
        )


def _whole_labels(rows: np.ndarray, column: Column) -> np.ndarray:
    if rows.dtype.kind == "f":
        broken = np.isfinite(rows) & (rows != np.rint(rows))
        if broken.any():
            raise column.error(
                "must hold integers; use --labels-as values if these are numbers to predict",
                rows[broken].flat[0],
            )
    return as_integers(rows, column)


def at_most_one(labels: np.ndarray) -> bool:
    """Return whether each row has at most a single 1 among zeros, or is entirely unknown."""
    unknown = labels < 0
    whole = unknown.all(axis=1) | ~unknown.any(axis=1)
    return bool((whole & ((labels == 1).sum(axis=1) <= 1)).all())


def _classes(labels: np.ndarray, column: Column) -> np.ndarray:
    """Return int64 [n]: the column of the 1 in each row, or -1 if there is no 1."""
    if not at_most_one(labels):
        raise column.error("is not one-hot: a row holds several ones, or an unknown entry")
    ones = labels == 1
    return np.where(ones.any(axis=1), ones.argmax(axis=1), -1)


def split_codes(split: NodeSplit, num_nodes: int) -> Iterator[np.ndarray]:
    """Yield int8 [n, S] chunks: 0 none, 1 train, 2 valid, 3 test.

    Raises:
        InputError: an index lies outside the graph, masks have another length, or a node is in two
            sets.
    """
    if split.column is not None:
        for rows in counted(split.column, num_nodes):
            check_bounds(rows, 0, 4, split.column, "codes (none, train, valid, test)")
            yield rows.astype(np.int8).reshape(-1, 1)
        return
    if split.codes is not None:
        yield _given_codes(split.file, split.codes, num_nodes)
        return
    sets = {name: _NodeSet(split, name, num_nodes) for name in split.parts}
    number = max(part.number for part in sets.values())
    for name, part in sets.items():
        if part.number not in (1, number):
            raise InputError(
                f"has {part.number} splits, another set has {number}", file=split.file, dataset=name
            )
    for low in range(0, num_nodes, _ROWS):
        out = np.zeros((min(_ROWS, num_nodes - low), number), np.int8)
        for name, part in sets.items():
            mask = np.broadcast_to(part.mask(low, low + out.shape[0]), out.shape)
            if (out[mask] > 0).any():
                row = low + int(np.argwhere((out > 0) & mask)[0, 0])
                raise InputError(
                    "node is in two sets of the same split",
                    file=split.file,
                    dataset=name,
                    value=row,
                )
            out[mask] = _CODES[name]
        yield out


def _given_codes(file: Path, values: np.ndarray, num_nodes: int) -> np.ndarray:
    column = Column(file, "split", iter(()))
    codes = as_integers(values, column)
    check_bounds(codes, 0, 4, column, "codes (none, train, valid, test)")
    if codes.ndim not in (1, 2) or codes.shape[0] != num_nodes or codes.shape[1:] == (0,):
        raise column.error(f"must have shape [{num_nodes}] or [{num_nodes}, splits]", codes.shape)
    return codes.astype(np.int8).reshape(num_nodes, -1)


class _NodeSet:
    """A set (train, valid or test), given as masks [N], [S, N] or [N, S] or a list of indices."""

    def __init__(self, split: NodeSplit, name: str, num_nodes: int) -> None:
        values = split.parts[name]
        column = Column(split.file, name, iter(()))
        self._indices = np.empty(0, np.int64)
        self.number = 1
        self._masks = _as_masks(values, name in split.masks, num_nodes, column)
        if self._masks is not None:
            self.number = self._masks.shape[0]
        elif values.ndim == 1 and (values.dtype.kind in "iu" or not values.size):
            check_bounds(values, 0, num_nodes, column, "node indices")
            self._indices = np.sort(as_integers(values, column))
            twice = self._indices[1:] == self._indices[:-1]
            if twice.any():
                raise column.error("node is listed twice", self._indices[np.argmax(twice)])
        else:
            raise column.error(
                "must be masks or one list of node indices", f"{values.dtype} {values.shape}"
            )

    def mask(self, low: int, high: int) -> np.ndarray:
        """Return bool [high - low, S]: which of these nodes are in the set."""
        if self._masks is not None:
            return self._masks[:, low:high].T
        first, end = np.searchsorted(self._indices, (low, high))
        out = np.zeros((high - low, 1), bool)
        out[self._indices[first:end] - low] = True
        return out


def _as_masks(values: np.ndarray, named: bool, num_nodes: int, column: Column) -> np.ndarray | None:
    """Return bool [S, N], or None if the values are node numbers; `named` excludes the latter."""
    if values.dtype.kind != "b":
        if values.dtype.kind not in "iuf" or not (named or values.size):
            return None
        other = (values != 0) & (values != 1)
        if named or values.ndim > 1:
            if other.any():
                raise column.error("masks may only hold 0 and 1", values[other].flat[0])
        elif values.shape != (num_nodes,) or other.any():
            return None
        elif values.dtype.kind != "f" and num_nodes < 3 and len(set(values.tolist())) == num_nodes:
            raise column.error(
                "could be a mask or node numbers: store booleans for a mask", values.tolist()
            )
        values = values != 0
    masks = values[None] if values.ndim == 1 else values
    if masks.ndim == 2 and masks.shape[1] != num_nodes:
        masks = masks.T
    if masks.ndim != 2 or masks.shape[1] != num_nodes or not masks.shape[0]:
        raise column.error(
            f"masks must have shape [{num_nodes}] or [splits, {num_nodes}]", values.shape
        )
    if masks.shape[0] == num_nodes > 1 and (masks != masks.T).any():
        raise column.error(
            "could be [splits, nodes] or [nodes, splits]: store another number of splits",
            values.shape,
        )
    return masks


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _check_finite(out: np.ndarray, given: np.ndarray, column: Column, first: int) -> None:
    if not np.isfinite(out).all():
        row, place = (int(k) for k in np.argwhere(~np.isfinite(out))[0])
        raise column.error(
            f"row {first + row}, column {place} is not a finite float32", given[row, place]
        )


def _vector(values: np.ndarray, column: Column) -> np.ndarray:
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise column.error("must have one value per node", values.shape)
    return values
