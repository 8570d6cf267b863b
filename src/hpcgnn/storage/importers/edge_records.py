"""Edges as checked records in a spool, with 4-byte node ids if these suffice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcgnn.display import Stage
from hpcgnn.errors import InputError
from hpcgnn.storage.checks import Place
from hpcgnn.storage.importers.ends import ENDS, PAIR, pack
from hpcgnn.storage.importers.source import EdgeChunk, Source
from hpcgnn.storage.importers.spool import Records, Scratch
from hpcgnn.storage.schema import as_labels, check_labels

_HELD = 2  # times the limit may be held: nothing is sorted while edges are read
_NARROW = 1 << 31  # up to this number of nodes, ids take 4 bytes
_MAX_RELATIONS = 1 << 16  # or the number of edges, if that is larger


@dataclass
class Spooled:
    """All edges of a source, checked.

    Attributes:
        records: the edges.
        relations: the number of relations.
        largest: the largest node id at an end of an edge; -1 without edges.
    """

    records: Records
    relations: int = 0
    largest: int = -1


def spool_edges(source: Source, scratch: Scratch, *, reverse: bool, stage: Stage) -> Spooled:
    """Read and check all edges, reversed if `reverse`.

    Raises:
        InputError: a number is out of range; the error names its place.
    """
    wide = source.num_nodes is not None and source.num_nodes > _NARROW
    held, number = _HELD * scratch.limit, source.num_edges
    records = scratch.records(_dtype(None, wide=wide), held, number)
    edges = Spooled(records, source.num_relations or 0)
    lowest, seen = np.iinfo(np.int64).max, False
    for chunk in source.edges:
        _check_edge_labels(chunk, source)
        checked, least, largest = _checked(chunk, source, reverse, wide, edges.records)
        wide = wide or largest > np.iinfo(np.int32).max
        if not seen and edges.records.dtype != checked.dtype:
            edges.records = scratch.records(checked.dtype, held, number)
        elif edges.records.dtype != checked.dtype:
            edges.records = _widened(edges.records, checked.dtype, source, scratch)
        seen = True
        edges.records.append(checked)
        edges.largest, lowest = max(edges.largest, largest), min(lowest, least)
        if chunk.relation is not None and source.num_relations is None:
            edges.relations = max(edges.relations, 1 + int(chunk.relation.max(initial=-1)))
        stage.advance(len(chunk.source))
    if "relation" not in (edges.records.dtype.names or ()):
        edges.relations = 0
    if edges.relations > max(_MAX_RELATIONS, edges.records.count):
        raise InputError(
            f"relations are numbered from 0, and there are only {edges.records.count} edges",
            file=source.file,
            value=edges.relations - 1,
        )
    if source.rows_as_given and source.num_nodes is not None and edges.largest >= 0 < lowest:
        source.notes.append(
            f"ids count from 0, but no edge touches a node below {lowest}: is that intended?"
        )
    return edges


def _checked(
    chunk: EdgeChunk, source: Source, reverse: bool, wide: bool, before: Records
) -> tuple[np.ndarray, int, int]:
    """Return records of edges, in place after those `before`, and the lowest and highest id."""
    ends = (chunk.destination, chunk.source) if reverse else (chunk.source, chunk.destination)
    if before.dtype == PAIR == _dtype(chunk, wide=wide) and chunk.source.size:
        records = before.place(chunk.source.shape[0])
        bounds = pack(*ends, records)
        top = min(_NARROW, _NARROW if source.num_nodes is None else source.num_nodes)
        if bounds.min() >= 0 and bounds.max() < top:
            return records, int(bounds.min()), int(bounds.max())
    found = [_range_of_ends(chunk, source, name) for name in ENDS]
    lowest, highest = min(low for low, _ in found), max(high for _, high in found)
    out = np.empty(chunk.source.shape[0], _dtype(chunk, wide=wide or highest >= _NARROW))
    out["source"], out["destination"] = ends
    if chunk.weight is not None:
        out["weight"] = _finite(chunk.weight, chunk, source, "weight")
    if chunk.features is not None:
        out["features"] = _finite(chunk.features, chunk, source, "edge features")
    if chunk.labels is not None:
        out["labels"] = chunk.labels
    if chunk.split is not None:
        _check_range(chunk.split, 4, chunk, source, "the split of the edges")
        out["split"] = chunk.split
    if chunk.relation is not None:
        top = 1 << 30 if source.num_relations is None else source.num_relations
        _check_range(chunk.relation, top, chunk, source, "relation")
        out["relation"] = chunk.relation
    return out, lowest, highest


def _widened(records: Records, dtype: np.dtype, source: Source, scratch: Scratch) -> Records:
    """Return the same edges with 8-byte ends, which have become necessary."""
    if with_ends(records.dtype, np.int64) != dtype:
        raise InputError("all edges must have the same columns", file=source.file)
    out = scratch.records(dtype, _HELD * scratch.limit, source.num_edges)
    for chunk in records.chunks():
        out.append(chunk.astype(dtype))
    records.drop()
    return out


def with_ends(dtype: np.dtype, kind: type[np.signedinteger]) -> np.dtype:
    """Return a dtype of edge records with the dtype of the two ends replaced."""
    names = dtype.names or ()
    return np.dtype([(name, kind if name in ENDS else dtype[name]) for name in names])


def _check_edge_labels(chunk: EdgeChunk, source: Source) -> None:
    if chunk.labels is not None:
        place = Place(source.file, chunk.place(0))
        chunk.labels = as_labels(chunk.labels, place)
        check_labels(chunk.labels, place)


def _dtype(edges: EdgeChunk | None, *, wide: bool) -> np.dtype:
    """Return the dtype of the records of such edges."""
    end = np.int64 if wide else np.int32
    fields: list[tuple] = [("source", end), ("destination", end)]
    if edges is not None and edges.weight is not None:
        fields.append(("weight", np.float32))
    if edges is not None and edges.relation is not None:
        fields.append(("relation", np.int32))
    if edges is not None and edges.features is not None:
        fields.append(("features", np.float32, (edges.features.shape[1],)))
    if edges is not None and edges.labels is not None:
        fields.append(("labels", edges.labels.dtype, edges.labels.shape[1:]))
    if edges is not None and edges.split is not None:
        fields.append(("split", np.int8))
    return np.dtype(fields)


def _range_of_ends(edges: EdgeChunk, source: Source, name: str) -> tuple[int, int]:
    top = np.iinfo(np.int64).max if source.num_nodes is None else source.num_nodes
    return _check_range(getattr(edges, name), top, edges, source, name)


def _check_range(
    values: np.ndarray, top: int, edges: EdgeChunk, source: Source, what: str
) -> tuple[int, int]:
    """Check that values lie in 0 .. top - 1, and return the smallest and the largest."""
    if values.size == 0:
        return top, -1
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < top:
        return low, high
    k = int(np.argmax((values < 0) | (values >= top)))
    message = f"{what} must not be negative" if values[k] < 0 else f"{what} must be below {top}"
    raise InputError(message, file=source.file, dataset=edges.place(k), value=int(values[k]))


def _finite(values: np.ndarray, edges: EdgeChunk, source: Source, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = values.astype(np.float32)
    bad = ~np.isfinite(out)
    if bad.any():
        at = np.argwhere(bad)[0]
        raise InputError(
            f"{what} must be a finite float32",
            file=source.file,
            dataset=edges.place(int(at[0])),
            value=float(values[tuple(at)]),
        )
    return out
