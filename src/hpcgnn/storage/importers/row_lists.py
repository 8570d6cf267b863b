"""The in-neighbour lists, row by row, made from edges in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.ends import PAIR, unpack
from hpcgnn.storage.importers.slabs import sorted_slabs, sorting_order
from hpcgnn.storage.importers.spool import Records, Scratch

_ROWS = 1 << 18


@dataclass(frozen=True)
class RowRules:
    """The rules for the finished lists; see `Treatment`."""

    symmetrise: bool = False
    self_loops: str = "keep"
    deduplicate: bool = False
    combine: str = "max"
    num_relations: int = 0


@dataclass
class RowChunk:
    """The lists of some consecutive nodes, as arguments of `GraphWriter.append_rows`."""

    counts: np.ndarray
    indices: np.ndarray
    weight: np.ndarray | None
    relation: np.ndarray | None
    edge_features: np.ndarray | None
    edge_labels: np.ndarray | None
    edge_split: np.ndarray | None


def row_chunks(
    edges: Records, scratch: Scratch, num_nodes: int, rules: RowRules
) -> Iterator[RowChunk]:
    """Yield the lists of nodes 0 .. num_nodes - 1, each in ascending order; `edges` are dropped.

    Raises:
        InputError: the list of a single node exceeds `scratch.limit` bytes, or a sum of weights is
            not finite.
    """
    names = edges.dtype.names or ()
    keys = ("destination", "source", *(("relation",) if "relation" in names else ()))
    dtype = edges.dtype
    row = 0
    for slab in sorted_slabs(edges, scratch, keys, whole=True):
        last, first = int(slab["destination"][-1]) + 1, 0
        for low in range(row, last, _ROWS):
            high = min(last, low + _ROWS)
            end = len(slab) if high == last else int(np.searchsorted(slab["destination"], high))
            yield _finish(slab[first:end], low, high, keys, rules)
            first = end
        row = last
    for low in range(row, num_nodes, _ROWS):
        yield _finish(np.empty(0, dtype), low, min(num_nodes, low + _ROWS), keys, rules)


def _finish(
    records: np.ndarray, low: int, high: int, keys: tuple[str, ...], rules: RowRules
) -> RowChunk:
    if rules.deduplicate:
        records = _without_duplicates(records, keys, rules.combine)
    if rules.self_loops == "add":
        records = _with_self_loops(records, low, high, keys)
    if records.dtype == PAIR:
        sources, counts = unpack(records, low, high)
        return RowChunk(counts, sources, None, None, None, None, None)
    names = records.dtype.names or ()
    return RowChunk(
        np.bincount(records["destination"] - low, minlength=high - low),
        np.ascontiguousarray(records["source"]),
        *(
            np.ascontiguousarray(records[name]) if name in names else None
            for name in ("weight", "relation", "features", "labels", "split")
        ),
    )


def _without_duplicates(records: np.ndarray, keys: tuple[str, ...], combine: str) -> np.ndarray:
    """Return one record for each value of the keys, from sorted records."""
    if records.shape[0] == 0:
        return records
    new = np.ones(records.shape[0], bool)
    new[1:] = np.logical_or.reduce([records[key][1:] != records[key][:-1] for key in keys])
    starts = np.flatnonzero(new)
    if starts.shape[0] == records.shape[0]:
        return records
    out = records[starts]
    reduce = {"max": np.maximum, "sum": np.add}[combine]
    for name in ("weight", "features"):
        if name in (records.dtype.names or ()):
            with np.errstate(over="ignore"):
                out[name] = reduce.reduceat(records[name], starts, axis=0)
            if not np.isfinite(out[name]).all():
                raise InputError(f"the sum of the {name} of some duplicate edges is not finite")
    if "labels" in (records.dtype.names or ()):
        out["labels"] = np.fmax.reduceat(records["labels"], starts, axis=0)  # known over unknown
        _check_duplicates_agree(records["labels"], out["labels"], new, "labels")
    if "split" in (records.dtype.names or ()):
        _check_duplicates_agree(records["split"], out["split"], new, "split")
    return out


def _check_duplicates_agree(
    values: np.ndarray, kept: np.ndarray, new: np.ndarray, name: str
) -> None:
    """Check that all duplicates of an edge have the value `kept` for it; labels may be unknown."""
    same = values == kept[np.cumsum(new) - 1]
    if name == "labels":
        same |= (values < 0) if values.dtype.kind == "i" else np.isnan(values)
    if not same.all():
        raise InputError(
            f"an edge and its duplicate, or its reverse, have different {name}: leave them as they "
            "are with --no-symmetrise and without --deduplicate"
        )


def _with_self_loops(records: np.ndarray, low: int, high: int, keys: tuple[str, ...]) -> np.ndarray:
    """Return sorted records with a self-loop of weight 1 added to each node without one."""
    missing = np.ones(high - low, bool)
    is_loop = records["source"] == records["destination"]
    missing[records["source"][is_loop] - low] = False
    added = np.zeros(int(missing.sum()), records.dtype)
    added["source"] = added["destination"] = low + np.flatnonzero(missing)
    if "weight" in (records.dtype.names or ()):
        added["weight"] = 1
    if "labels" in (records.dtype.names or ()):
        added["labels"] = -1 if added["labels"].dtype.kind == "i" else np.nan
    both = np.concatenate([records, added])
    return both[sorting_order(both, keys)] if both.shape[0] else both
