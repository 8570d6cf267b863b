"""Values of columns, batch by batch, checked; the split that they give."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpcgnn.errors import InputError
from hpcgnn.storage.checks import mix64
from hpcgnn.storage.importers import table_files
from hpcgnn.storage.importers.names import LONGEST
from hpcgnn.storage.importers.source import Column, Over, as_ids
from hpcgnn.storage.importers.spool import Scratch, sorted_slabs
from hpcgnn.storage.importers.table_files import TEXT, Batch, TableFile
from hpcgnn.storage.schema import TEST, TRAIN, VALID

_SETS = ("train", "valid", "test")
_CODES = {"": 0, "0": 0, "none": 0, "1": 1, "train": 1, "training": 1, "2": 2, "val": 2, "valid": 2}
_MASKS = {"": 0, "0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
_ENTRY = np.dtype([("key", np.int64), ("row", np.int64)])
_CODE = np.dtype([("row", np.int64), ("code", np.int8)])
_GOLDEN = 0x9E3779B97F4A7C15
_CHANCE = np.uint64(42)  # bits of a key below those of the class

_CODES |= {"validation": 2, "dev": 2, "3": 3, "test": 3, "testing": 3}


def batches(
    tables: list[TableFile], kinds: dict[str, str], id: str | None = None, over: Over = map
) -> Iterator[Batch]:
    """Batches of all tables; a table may lack a column, and then `id` counts its rows."""
    for table in tables:
        there = {name: kind for name, kind in kinds.items() if name in table.names}
        if not there and id is not None:
            there = {id: table.kinds[id]}
        if there:
            yield from table.batches(there, over)


def numbers(batch: Batch, names: list[str]) -> np.ndarray:
    """float64 [n], or [n, W] of several columns; NaN where a value is missing."""
    nothing = pa.nulls(batch.num_rows)
    columns = [batch.columns.get(name, nothing).cast(pa.float64()) for name in names]
    found = [table_files.to_numpy(column.fill_null(math.nan)) for column in columns]
    return found[0] if len(found) == 1 else np.stack(found, axis=1)


def known(batch: Batch, name: str) -> np.ndarray:
    array = batch.columns[name]
    if array.null_count:
        raise null(batch, name)
    return table_files.to_numpy(array)


def integers(batch: Batch, name: str) -> np.ndarray:
    """int64 [n]: ids, or numbers of relations; whole floats included.

    Raises:
        InputError: naming the line of one that is no integer, or beyond 64 bits.
    """
    values = table_files.to_numpy(batch.columns[name])
    if values.dtype.kind == "f":
        odd = np.flatnonzero((values != np.rint(values)) | (np.abs(values) >= 1 << 53))
        if odd.size:
            text = "is no whole number that a float holds exactly: --string-ids takes it as text"
            raise batch.error(name, int(odd[0]), text, float(values[odd[0]]))
    elif values.dtype.kind == "u" and values.max(initial=0) >= 1 << 63:
        row = int(np.argmax(values >= 1 << 63))
        raise batch.error(name, row, table_files.TOO_LARGE, int(values[row]))
    return as_ids(values, Column(batch.file, name, iter(())))


def null(batch: Batch, name: str) -> InputError:
    row = int(np.argmax(table_files.to_numpy(batch.columns[name].is_null())))
    place = batch.place(row)
    return InputError(f"{place} is null or empty", file=batch.file, dataset=name)


def check_length(batch: Batch, name: str) -> None:
    lengths = table_files.to_numpy(pc.binary_length(batch.columns[name]))
    if lengths.max(initial=0) > LONGEST:
        row = int(np.argmax(lengths))
        raise batch.error(name, row, f"ids are texts of at most {LONGEST} bytes", int(lengths[row]))


def split_codes(tables: list[TableFile], columns: list[str], id: str) -> Iterator[np.ndarray]:
    """int8 chunks: 0 none, 1 train, 2 valid, 3 test, from one column of names, or three masks.

    Raises:
        InputError: another value, or a node in two sets.
    """
    if len(columns) == 1:
        for batch in batches(tables, {columns[0]: TEXT}, id=id):
            texts = batch.columns.get(columns[0], pa.nulls(batch.num_rows, pa.string())).to_pylist()
            found = [_CODES.get((text or "").strip().lower(), -1) for text in texts]
            if -1 in found:
                row = found.index(-1)
                raise batch.error(
                    columns[0], row, "must be train, valid, test or empty", texts[row]
                )
            yield np.array(found, np.int8)
        return
    if len(columns) != len(_SETS):
        raise InputError(
            "--split-column takes one column, or three masks: train, valid, test",
            file=tables[0].path,
            value=",".join(columns),
        )
    for batch in batches(tables, dict.fromkeys(columns, TEXT), id=id):
        nothing = pa.nulls(batch.num_rows, pa.string())
        texts = [batch.columns.get(name, nothing).to_pylist() for name in columns]
        codes = [[_MASKS.get((text or "").strip().lower(), -1) for text in one] for one in texts]
        masks = np.array(codes).T
        wrong = ((masks != 0) & (masks != 1)).any(axis=1) | (masks.sum(axis=1) > 1)
        if wrong.any():
            row = int(np.argmax(wrong))
            text = "masks are 0 and 1, or false and true, and one of them"
            raise batch.error(columns[0], row, text, [one[row] for one in texts])
        yield (masks @ np.arange(1, 4)).astype(np.int8)


def split_chunks(
    labels: Iterator[np.ndarray],
    times: Iterator[np.ndarray] | None,
    ratio: tuple[float, float, float],
    seed: int,
    scratch: Scratch,
) -> Iterator[np.ndarray]:
    """int8 chunks: 0 none, 1 train, 2 valid, 3 test; unlabelled nodes get 0.

    Args:
        labels: int64 chunks [n], -1 unknown.
        times: int64 chunks as long: the earliest train, the latest test, whatever their class.
        ratio: shares of train, valid and test, which add up to 1.
        seed: of the order in each class where there are no times.
    """
    entries = scratch.records(_ENTRY)
    counts: dict[int, int] = {}
    row = 0
    sizes = []
    for chunk in labels:
        known = np.flatnonzero(chunk >= 0)
        out = np.empty(known.shape[0], _ENTRY)
        out["row"] = row + known
        groups = np.zeros(known.shape[0], np.int64)
        if times is None:
            groups = chunk[known]
            key = out["row"].astype(np.uint64) + np.uint64(seed * _GOLDEN & (1 << 64) - 1)
            mix64(key)
            out["key"] = groups << _CHANCE.astype(np.int64)
            out["key"] += (key >> (np.uint64(64) - _CHANCE)).astype(np.int64)
        else:
            out["key"] = next(times)[known]
        for name, count in zip(*np.unique(groups, return_counts=True), strict=True):
            counts[int(name)] = counts.get(int(name), 0) + int(count)
        entries.append(out)
        sizes.append(chunk.shape[0])
        row += chunk.shape[0]
    codes = scratch.records(_CODE)
    seen = dict.fromkeys(counts, 0)
    for slab in sorted_slabs(entries, scratch, ("key",), whole=False):
        out = np.empty(slab.shape[0], _CODE)
        out["row"] = slab["row"]
        groups = np.zeros_like(slab["key"])
        if times is None:
            groups = slab["key"] >> _CHANCE.astype(np.int64)
        for name in np.unique(groups).tolist():
            here = slice(*np.searchsorted(groups, (name, name + 1)))
            place = seen[name] + np.arange(here.stop - here.start)
            seen[name] += here.stop - here.start
            out["code"][here] = _codes(place, counts[name], ratio)
        codes.append(out)
    yield from _by_row(sorted_slabs(codes, scratch, ("row",), whole=False), sizes)


def _codes(place: np.ndarray, count: int, ratio: tuple[float, float, float]) -> np.ndarray:
    """int8: the set of the nodes at these places of `count`."""
    train = int(np.ceil(count * ratio[0] - 1e-9))
    valid = min(count, train + round(count * ratio[1]))
    return np.where(place < train, TRAIN, np.where(place < valid, VALID, TEST))


def _by_row(slabs: Iterator[np.ndarray], sizes: list[int]) -> Iterator[np.ndarray]:
    held = np.empty(0, _CODE)
    low = 0
    for size in sizes:
        out = np.zeros(size, np.int8)
        while True:
            here = held[: np.searchsorted(held["row"], low + size)]
            out[here["row"] - low] = here["code"]
            held = held[here.shape[0] :]
            if held.shape[0]:
                break
            following = next(slabs, None)
            if following is None:
                break
            held = following
        yield out
        low += size
