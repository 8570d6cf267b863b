"""Checked values of table columns, batch by batch, and the split that columns give."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import cells
from hpcgnn.storage.importers.cells import BOOLEAN, INTEGER, LIST, TEXT, TIME
from hpcgnn.storage.importers.names import LONGEST
from hpcgnn.storage.importers.source import Column, Over, as_ids
from hpcgnn.storage.importers.table_batches import Batch, to_numpy
from hpcgnn.storage.importers.table_files import ParquetTable, TableFile

_MANY = 50  # with this many distinct numbers per text or more, the column has no categories
_SETS = ("train", "valid", "test")
_CODES = {"": 0, "0": 0, "none": 0, "1": 1, "train": 1, "training": 1, "2": 2, "val": 2, "valid": 2}
_MASKS = {"": 0, "0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}

_CODES |= {"validation": 2, "dev": 2, "3": 3, "test": 3, "testing": 3}


def batches(
    tables: list[TableFile], kinds: dict[str, str], id: str | None = None, over: Over = map
) -> Iterator[Batch]:
    """Yield batches of all tables; if a table lacks the columns, `id` is read to count its rows."""
    for table in tables:
        there = {name: kind for name, kind in kinds.items() if name in table.names}
        if not there and id is not None:
            there = {id: table.kinds[id]}
        if there:
            yield from table.batches(there, over)


def numbers(batch: Batch, names: list[str]) -> np.ndarray:
    """Return float64 [n], or [n, W] for several columns; NaN for missing values."""
    nothing = pa.nulls(batch.num_rows)
    columns = [batch.columns.get(name, nothing).cast(pa.float64()) for name in names]
    found = [to_numpy(column.fill_null(math.nan)) for column in columns]
    return found[0] if len(found) == 1 else np.stack(found, axis=1)


def strange(tables: list[TableFile], name: str, odd: list[str], count: int) -> str:
    """Return a note on texts among a column's `count` distinct values that otherwise are numbers.

    Raises:
        InputError: nearly all values are numbers, so that categories can't be meant.
    """
    remedy = (
        "correct it"
        if "," in odd[0]
        else f"use --na {shlex.quote(odd[0])} if it means a missing value"
    )
    few = count >= _MANY and len(odd) * _MANY <= count
    for batch in batches(tables, {name: TEXT}):
        array = batch.columns.get(name)
        row = -1 if array is None else pc.index(array.cast(pa.string()), odd[0]).as_py()
        if row >= 0 and few:
            text = f"is not a number, unlike nearly all values: {remedy}, or --categorical {name}"
            raise batch.error(name, row, f"{text} makes each value a feature", odd[0])
        if row >= 0:
            of = f"{odd[0]} ({batch.file.name}, {batch.place(row)})"
            return f"{name} holds numbers and {of}, each of which becomes a feature: {remedy}"
    return f"{name} holds numbers and {odd[0]}, each of which becomes a feature: {remedy}"


def known(batch: Batch, name: str) -> np.ndarray:
    """Return a column without missing values; raise InputError with the line of one."""
    array = batch.columns[name]
    if array.null_count:
        raise null(batch, name)
    return to_numpy(array)


def integers(batch: Batch, name: str) -> np.ndarray:
    """Return int64 [n] ids or relation numbers; floats must be whole.

    Raises:
        InputError: a value is not an integer or exceeds 64 bits; the error names its line.
    """
    values = to_numpy(batch.columns[name])
    if values.dtype.kind == "f":
        odd = np.flatnonzero((values != np.rint(values)) | (np.abs(values) >= 1 << 53))
        if odd.size:
            text = "is not a whole number that a float holds exactly: --string-ids reads it as text"
            raise batch.error(name, int(odd[0]), text, float(values[odd[0]]))
    elif values.dtype.kind == "u" and values.max(initial=0) >= 1 << 63:
        row = int(np.argmax(values >= 1 << 63))
        raise batch.error(name, row, cells.TOO_LARGE, int(values[row]))
    return as_ids(values, Column(batch.file, name, iter(())))


def are_text(columns: list[tuple[TableFile, str]]) -> bool:
    """Return whether these columns of ids are read as text, since some are no plain integers.

    Raises:
        InputError: a column of a Parquet file holds booleans, times or lists.
    """
    kinds = [table.kinds[name] for table, name in columns]
    for (table, name), kind in zip(columns, kinds, strict=True):
        if kind in (BOOLEAN, TIME, LIST) and isinstance(table, ParquetTable):
            raise InputError(
                "must hold integers or texts, not booleans, times or lists",
                file=table.path,
                dataset=name,
            )
    return bool({TEXT, TIME, LIST} & set(kinds)) or any(
        table.kinds[name] == INTEGER and not table.is_canonical(name) for table, name in columns
    )


def null(batch: Batch, name: str) -> InputError:
    """Return the error for the first missing value of a column."""
    row = int(np.argmax(to_numpy(batch.columns[name].is_null())))
    place = batch.place(row)
    return InputError(f"{place} is null or empty", file=batch.file, dataset=name)


def check_length(batch: Batch, name: str) -> None:
    """Raise InputError if a text is too long for an id."""
    lengths = to_numpy(pc.binary_length(batch.columns[name]))
    if lengths.max(initial=0) > LONGEST:
        row = int(np.argmax(lengths))
        raise batch.error(name, row, f"ids are texts of at most {LONGEST} bytes", int(lengths[row]))


def split_codes(tables: list[TableFile], columns: list[str], id: str) -> Iterator[np.ndarray]:
    """Yield int8 chunks (0 none, 1 train, 2 valid, 3 test) from a column of names or three masks.

    Raises:
        InputError: there is another value, or a node is in two sets.
    """
    read = set_codes if len(columns) == 1 else mask_codes
    for batch in batches(tables, dict.fromkeys(columns, TEXT), id=id):
        yield read(batch, columns)


def set_codes(batch: Batch, columns: list[str]) -> np.ndarray:
    """Return int8 [n] split codes from a column of set names."""
    (name,) = columns
    texts = batch.columns.get(name, pa.nulls(batch.num_rows, pa.string())).to_pylist()
    found = [_CODES.get((text or "").strip().lower(), -1) for text in texts]
    if -1 in found:
        row = found.index(-1)
        raise batch.error(name, row, "must be train, valid, test or empty", texts[row])
    return np.array(found, np.int8)


def mask_codes(batch: Batch, columns: list[str]) -> np.ndarray:
    """Return int8 [n] split codes from three masks."""
    nothing = pa.nulls(batch.num_rows, pa.string())
    texts = [batch.columns.get(name, nothing).to_pylist() for name in columns]
    codes = [[_MASKS.get((text or "").strip().lower(), -1) for text in one] for one in texts]
    masks = np.array(codes).reshape(len(columns), -1).T
    wrong = ((masks != 0) & (masks != 1)).any(axis=1) | (masks.sum(axis=1) > 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        text = "masks are 0 and 1, or false and true, and exactly one of them is set"
        raise batch.error(columns[0], row, text, [one[row] for one in texts])
    return (masks @ np.arange(1, 4)).astype(np.int8)


def check_split_columns(columns: list[str], file: Path, option: str) -> None:
    """Raise InputError unless there is no column, one column, or three masks."""
    if len(columns) not in (0, 1, len(_SETS)):
        raise InputError(
            f"{option} takes one column, or three masks: train, valid, test",
            file=file,
            value=",".join(columns),
        )
