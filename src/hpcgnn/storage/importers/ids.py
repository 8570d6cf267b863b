"""Mapping of the ids that a source uses to rows 0 .. N - 1, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.sorting import sorted_unique
from hpcgnn.storage.importers.edge_records import with_ends
from hpcgnn.storage.importers.ends import ENDS, mark
from hpcgnn.storage.importers.slabs import sorted_slabs
from hpcgnn.storage.importers.source import PIECE_BYTES, Column, as_ids
from hpcgnn.storage.importers.spool import Records, Scratch

_HASHED = 64  # bytes per id that a table of hashes takes
_ID = np.dtype([("id", np.int64)])
_ENTRY = np.dtype([("id", np.int64), ("row", np.int64)])


@dataclass
class IdTable:
    """The node ids in ascending order, each with its row.

    Attributes:
        entries: the records of (id, row); may be empty if `consecutive`.
        count: the number of ids.
        consecutive: the ids are 0 .. N - 1 and each is its own row.
        find: returns the rows of ids, -1 for unknown ids; None if a lookup table does not fit into
            the memory allowed.
    """

    entries: Records
    count: int
    consecutive: bool
    find: Callable[[np.ndarray], np.ndarray] | None = None


def distinct(edges: Records, largest: int, scratch: Scratch) -> IdTable:
    """Number the ids at the ends of the edges, of which the largest is `largest`, in order."""
    if 16 * (largest + 1) <= scratch.limit:
        return _from_lookup(edges, largest, scratch)
    ids = scratch.records(_ID)
    for chunk in edges.chunks():
        ends = sorted_unique(np.concatenate([chunk["source"], chunk["destination"]]))
        ids.append(ends.astype(np.int64, copy=False).view(_ID))
    entries = scratch.records(_ENTRY)
    largest = -1
    for slab in sorted_slabs(ids, scratch, ("id",), whole=False):
        found = sorted_unique(slab["id"])
        found = found[found > largest]
        if found.shape[0]:
            rows = np.arange(entries.count, entries.count + found.shape[0])
            entries.append(_entries(found, rows))
            largest = int(found[-1])
    number = entries.count
    return IdTable(entries, number, largest == number - 1, _finder(entries, scratch, largest))


def _from_lookup(edges: Records, largest: int, scratch: Scratch) -> IdTable:
    there, missing = np.zeros(largest + 1, bool), largest + 1
    for chunk in edges.chunks():
        missing -= mark(chunk, there)
        if not missing:
            return IdTable(scratch.records(_ENTRY), largest + 1, consecutive=True)
    found = np.flatnonzero(there)
    entries = scratch.records(_ENTRY)
    entries.append(_entries(found, np.arange(found.shape[0])))
    lookup = np.full(largest + 1, -1)
    lookup[found] = np.arange(found.shape[0])
    return IdTable(entries, entries.count, consecutive=False, find=partial(_in_list, lookup))


def given(column: Column, scratch: Scratch) -> IdTable:
    """Return the table of a list that gives the nodes' ids row by row.

    Raises:
        InputError: an id is negative, listed twice, or no integer.
    """
    listed = scratch.records(_ENTRY)
    consecutive = True
    for chunk in column.chunks:
        found = as_ids(chunk, column).reshape(-1)
        if found.size and found.min() < 0:
            raise column.error("ids must not be negative", found.min())
        rows = np.arange(listed.count, listed.count + found.shape[0])
        consecutive = consecutive and bool((found == rows).all())
        listed.append(_entries(found, rows))
    entries = scratch.records(_ENTRY)
    last = -1
    for slab in sorted_slabs(listed, scratch, ("id",), whole=False):
        twice = np.flatnonzero(np.diff(slab["id"], prepend=last) == 0)
        if twice.shape[0]:
            raise column.error("is listed twice", slab["id"][twice[0]])
        last = slab["id"][-1]
        entries.append(slab)
    return IdTable(entries, entries.count, consecutive, _finder(entries, scratch, int(last)))


def _finder(
    entries: Records, scratch: Scratch, largest: int
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function that looks up rows in memory, or None if its table would not fit."""
    if 16 * (largest + 1) <= scratch.limit:
        lookup = np.full(largest + 1, -1)
        for chunk in entries.chunks():
            lookup[chunk["id"]] = chunk["row"]
        return partial(_in_list, lookup)
    if _HASHED * entries.count <= scratch.limit:
        whole = entries.load()
        return partial(_in_set, np.ascontiguousarray(whole["id"]), whole["row"].copy())
    return None


def _in_list(lookup: np.ndarray, ids: np.ndarray) -> np.ndarray:
    known = ids < lookup.shape[0]
    if not lookup.shape[0]:
        return np.full(ids.shape[0], -1)
    return np.where(known, lookup[np.where(known, ids, 0)], -1)


def _in_set(known: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    from pyarrow import array, compute

    places = compute.index_in(array(ids), value_set=array(known)).fill_null(-1).to_numpy()
    return np.where(places < 0, -1, rows[places]) if rows.shape[0] else places


def rows_of_edges(edges: Records, table: IdTable, scratch: Scratch, column: Column) -> Records:
    """Return the edges with ids replaced by rows; `edges` are dropped."""
    dtype = _with_ends_for(edges.dtype, table.count)
    if table.find is not None:
        return _found(edges, table.find, scratch.records(dtype), column, scratch.limit // 4)
    for field, kind in (("source", with_ends(edges.dtype, np.int64)), ("destination", dtype)):
        translated = scratch.records(kind)
        for slab in _translate(edges, field, table, scratch, column):
            translated.append(slab.astype(kind))
        edges = translated
    return edges


def _with_ends_for(dtype: np.dtype, num_rows: int) -> np.dtype:
    return with_ends(dtype, np.int32 if num_rows <= 1 << 31 else np.int64)


def _found(
    edges: Records,
    find: Callable[[np.ndarray], np.ndarray],
    out: Records,
    column: Column,
    limit: int,
) -> Records:
    """Fill `out` with the edges in their order; all ids of a large chunk are looked up at once."""
    for chunk in edges.chunks(max(PIECE_BYTES, limit)):
        rows = np.empty(chunk.shape[0], out.dtype)
        for field in out.dtype.names or ():
            if field not in ENDS:
                rows[field] = chunk[field]
                continue
            ids = np.ascontiguousarray(chunk[field])
            found = find(ids)
            if found.min(initial=0) < 0:
                raise _unknown(ids[found < 0].min(), column)
            rows[field] = found
        out.append(rows)
    edges.drop()
    return out


def ids_by_row(table: IdTable, scratch: Scratch) -> Iterator[np.ndarray]:
    """Yield int64 chunks of the ids of rows 0, 1, 2, ...; the table is dropped."""
    for slab in sorted_slabs(table.entries, scratch, ("row",), whole=False):
        yield slab["id"]


def _entries(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    out = np.empty(ids.shape[0], _ENTRY)
    out["id"], out["row"] = ids, rows
    return out


def _translate(
    edges: Records, field: str, table: IdTable, scratch: Scratch, column: Column
) -> Iterator[np.ndarray]:
    """Sort by `field` and go along the table, so that only a chunk of either is in memory."""
    chunks = table.entries.chunks()
    chunk = next(chunks, np.empty(0, _ENTRY))
    for slab in sorted_slabs(edges, scratch, (field,), whole=False):
        ids = np.ascontiguousarray(slab[field])
        out = slab.astype(with_ends(slab.dtype, np.int64))
        first = 0
        while first < ids.shape[0]:
            last = first
            if chunk.shape[0]:
                last = first + int(np.searchsorted(ids[first:], chunk["id"][-1], side="right"))
            at = np.searchsorted(chunk["id"], ids[first:last])
            _check_known(ids[first:last], chunk["id"][at], column)
            out[field][first:last] = chunk["row"][at]
            first = last
            if first < ids.shape[0]:
                following = next(chunks, None)
                if following is None:
                    raise _unknown(ids[first], column)
                chunk = following
        yield out


def _check_known(ids: np.ndarray, found: np.ndarray, column: Column) -> None:
    wrong = ids != found
    if wrong.any():
        raise _unknown(ids[np.argmax(wrong)], column)


def _unknown(value: np.int64, column: Column) -> InputError:
    text = "an edge ends at a node that is not listed here: add it, or leave the edge out"
    return column.error(text, value)
