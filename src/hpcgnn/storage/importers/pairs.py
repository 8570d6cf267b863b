"""Edges whose ends, weights, relations and features are given as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.ahead import ahead
from hpcgnn.storage.importers.arrays import ArraySource, rechunk, together
from hpcgnn.storage.importers.source import Column, EdgeChunk, as_ids, as_integers

_IN_CACHE = 1 << 20  # bytes of edges; arrays this small reuse memory freed before
_AHEAD = 2


def edges_from(
    ends: Column,
    *,
    weight: Column | None = None,
    relation: Column | None = None,
    features: Column | None = None,
    labels: Column | None = None,
    split: Column | None = None,
) -> Iterator[EdgeChunk]:
    """Yield edges from the rows [source, destination] of `ends` and columns of the same length.

    Raises:
        InputError: the columns have different lengths, or the ends are not integers.
    """
    columns = (weight, relation, features, labels, split)
    extras = [column for column in columns if column is not None]
    first = 0
    try:
        for pair, *rest in together(ends.chunks, *(column.chunks for column in extras)):
            values = dict(zip(map(id, extras), rest, strict=True))
            integers = as_ids(pair, ends)
            yield EdgeChunk(
                integers[:, 0],
                integers[:, 1],
                place=lambda k, first=first: f"{ends.name}, edge {first + k}",  # type: ignore[misc]
                weight=_floats(values.get(id(weight)), weight, 1),
                relation=None if relation is None else as_integers(values[id(relation)], relation),
                features=_floats(values.get(id(features)), features, 2),
                labels=values.get(id(labels)),
                split=None if split is None else as_integers(values[id(split)], split),
            )
            first += pair.shape[0]
    except ValueError:
        names = ", ".join(column.name for column in (ends, *extras))
        raise InputError(f"must have the same number of edges: {names}", file=ends.file) from None


def beside(
    edges: Iterator[EdgeChunk], labels: Column | None, split: Column | None
) -> Iterator[EdgeChunk]:
    """Yield the same edges with labels and a split from separate columns, in the order of the file.

    Raises:
        InputError: a column has another length.
    """
    columns = [None if column is None else _Rows(column) for column in (labels, split)]
    first = 0
    for chunk in edges:
        count = len(chunk.source)
        taken = [None if rows is None else rows.take(first, count) for rows in columns]
        codes = None if taken[1] is None or split is None else as_integers(taken[1], split)
        yield replace(chunk, labels=taken[0], split=codes)
        first += count
    for rows in columns:
        if rows is not None:
            rows.check_end(first)


class _Rows:
    """A column from which given numbers of rows are taken."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._held: list[np.ndarray] = []

    def take(self, first: int, count: int) -> np.ndarray:
        """Return the next `count` rows, after `first` rows taken before."""
        have = sum(map(len, self._held))
        while have < count or not self._held:
            chunk = next(self._column.chunks, None)
            if chunk is None:
                raise self._column.error("has fewer rows than there are edges", first + have)
            self._held.append(chunk)
            have += len(chunk)
        rows = np.concatenate(self._held)
        self._held = [rows[count:]]
        return rows[:count]

    def check_end(self, count: int) -> None:
        if any(map(len, self._held)) or any(map(len, self._column.chunks)):
            raise self._column.error("has more rows than there are edges", count)


def _floats(values: np.ndarray | None, column: Column | None, ndim: int) -> np.ndarray | None:
    if values is None or column is None:
        return None
    if values.ndim == 2 and ndim == 1 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 1 and ndim == 2:
        values = values[:, None]
    if values.ndim != ndim or values.dtype.kind not in "biuf" or 0 in values.shape[1:]:
        raise column.error(f"must be numbers in {ndim} dimensions, one row per edge", values.shape)
    return values


def pair_column(array: ArraySource, limit: int, *, sources_first: bool = False) -> Column:
    """Return [k, 2] chunks of an array [2, E] or [E, 2].

    Args:
        sources_first: an array of shape [2, 2] is [2, E], as its name says.

    Raises:
        InputError: the array has another shape, or shape [2, 2] and an ambiguous orientation.
    """
    if array.ndim != 2 or 2 not in array.shape:
        raise array.error("must have shape [2, E] or [E, 2]", array.shape)
    if array.shape == (2, 2) and not sources_first:
        values = array.load(limit)
        if (values != values.T).any():
            raise array.error(
                "could be [2, E] or [E, 2]: give the sources and the destinations as two .npy "
                "files, or as edge_index [2, E] in an .npz",
                values.tolist(),
            )
    by_row = array.shape[0] != 2
    name = array.member or "array"
    number = array.shape[0] if by_row else array.shape[1]
    if by_row != array.fortran:  # source and destination of an edge are adjacent
        flat = array.flat(nbytes=_IN_CACHE)
        chunks = (part.reshape(-1, 2) for part in rechunk(flat, _IN_CACHE // 8))
        return Column(array.path, name, ahead(chunks, _AHEAD), length=number)
    stacked = (pair.T for pair in array.stacked(_IN_CACHE))
    return Column(array.path, name, ahead(stacked, _AHEAD), length=number)


def two_columns(
    file: Path,
    name: str,
    sources: Iterator[np.ndarray],
    destinations: Iterator[np.ndarray],
    *,
    length: int | None = None,
) -> Column:
    """Return [k, 2] chunks of two columns."""
    chunks = (np.stack(pair).T for pair in together(sources, destinations))
    return Column(file, name, ahead(chunks), length=length)


def array_pair(source: Path, destination: Path) -> Column:
    """Return the edges of two one-dimensional .npy files of the same length."""
    arrays = ArraySource(source), ArraySource(destination)
    for array in arrays:
        if array.ndim != 1 or array.shape != arrays[0].shape:
            raise array.error(f"must have one dimension, as long as {source.name}", array.shape)
    first, second = (array.flat(nbytes=_IN_CACHE // 2) for array in arrays)
    name, length = f"with {destination.name}", arrays[0].shape[0]
    return two_columns(source, name, first, second, length=length)


_BUCKETS = 1 << 12
_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class BothEnds:
    """A check that edges are listed at both ends: a signed sum of hashes that must vanish.

    An edge listed at its lower end adds its hash, one listed at its higher end subtracts it. Each
    sum is over a part of the pairs of nodes, so that `find` keeps only that part in memory.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(_BUCKETS, np.uint64)

    def add(self, edges: EdgeChunk) -> None:
        low, high, up, down = _directed(edges)
        code = _code(low, high)
        bucket = (code % np.uint64(_BUCKETS)).astype(np.intp)
        if edges.weight is not None:
            code = _mixed(code + edges.weight.astype(np.int64).view(np.uint64))
        np.add.at(self._sums, bucket[up], code[up])
        np.subtract.at(self._sums, bucket[down], code[down])

    def agree(self) -> bool:
        return not self._sums.any()

    def find(self, chunks: Iterable[EdgeChunk]) -> tuple[int, int]:
        """Go over the edges again; return a node and a neighbour it lists that doesn't list it."""
        wanted = np.uint64(np.argmax(self._sums != 0))
        parts = []
        for edges in chunks:
            low, high, up, _ = _directed(edges)
            weight = np.zeros(low.shape[0], np.int64) if edges.weight is None else edges.weight
            here = np.flatnonzero(
                (_code(low, high) % np.uint64(_BUCKETS) == wanted) & (low != high)
            )
            parts.append(
                np.stack([low, high, weight.astype(np.int64), np.where(up, 1, -1)])[:, here]
            )
        rows = np.concatenate(parts, axis=1)
        keys, at = np.unique(rows[:3], axis=1, return_inverse=True)
        balance = np.bincount(at.reshape(-1), rows[3])
        k = int(np.argmax(balance != 0))
        ends = int(keys[0, k]), int(keys[1, k])
        return ends if balance[k] > 0 else ends[::-1]


def _directed(edges: EdgeChunk) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return lower and higher ends, and masks of the edges that go up and down."""
    low = np.minimum(edges.source, edges.destination)
    high = np.maximum(edges.source, edges.destination)
    return low, high, edges.source < edges.destination, edges.source > edges.destination


def _code(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return _mixed(_mixed(low.view(np.uint64)) + high.view(np.uint64))


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return uint64 numbers that differ in half of their bits if the values differ in one."""
    out = values + np.uint64(_FACTORS[0])
    for shift, factor in ((30, _FACTORS[1]), (27, _FACTORS[2])):
        out ^= out >> np.uint64(shift)
        out *= np.uint64(factor)
    return out ^ (out >> np.uint64(31))
