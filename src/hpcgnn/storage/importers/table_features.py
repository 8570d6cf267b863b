"""Conversion of table columns to features and classes, and the encoding to be remembered."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from fnmatch import fnmatchcase
from re import fullmatch
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpcgnn.errors import InputError, counted
from hpcgnn.settings import nearest
from hpcgnn.storage.encoding import CATEGORY, NUMBER, VECTOR, EncodedColumn
from hpcgnn.storage.importers import cells
from hpcgnn.storage.importers.table_batches import Batch, to_numpy
from hpcgnn.storage.importers.table_files import TableFile
from hpcgnn.storage.importers.table_values import strange

MAX_CATEGORIES = 1 << 12
_ROW_NUMBERS = r"|Unnamed: \d+|__index_level_\d+__"
_MINUS_ONE = "-1"  # many data sets have it where no class is known
MAX_NAMES = 1 << 16  # of classes, and of relations
_MANY_FEATURES = 256  # more values than this of one column are likely to be names
_MANY_NAMES = 30  # more values than this, nearly as many as rows, are likely to be ids


def merged_kind(tables: list[TableFile], name: str) -> str:
    """Return the common kind of a column's values over all tables that have it."""
    kinds = {table.kinds[name] for table in tables if name in table.names}
    if len(kinds) == 1:
        return kinds.pop()
    for kind in (cells.LIST, cells.TEXT, cells.TIME, cells.BOOLEAN):
        if kind in kinds:
            return kind
    return cells.NUMBER if kinds else cells.TEXT


def require_columns(table: Any, names: list[str]) -> None:
    """Check that each column exists exactly once.

    Raises:
        InputError: one does not; the error lists the existing columns.
    """
    for name in names:
        folder = getattr(table, "folder", None)
        if folder is not None and name not in table.names and name in table.folder_keys:
            raise InputError(
                "is only in the names of folders, which are not read: write it into the files",
                file=folder,
                value=name,
            )
        if table.names.count(name) != 1:
            which = "but this one twice" if name in table.names else "but not this one"
            alike = [known for known in table.names if known.lower() == name.lower()] or None
            if alike and name not in table.names:
                which += f" (did you mean {alike[0]}?)"
            elif name not in table.names and (near := nearest(name, table.names)):
                which += near
            elif table.names[0].startswith("sep="):
                which += ": remove its first line, which a spreadsheet program added"
            elif any("\0" in known for known in table.names):
                which += ": is it UTF-16? iconv -f UTF-16LE -t UTF-8 makes it UTF-8"
            elif all(known.isdecimal() for known in table.names) and not name.isdecimal():
                which += " (--header: its first line names them)"
            elif len(table.names) == 1:
                which += ": does it have another delimiter (--delimiter)?"
            shown = ", ".join(table.names[:40]) + (", ..." if len(table.names) > 40 else "")
            raise InputError(f"has columns {shown}, {which}", file=table.path, value=name)


def require_alike(tables: list[TableFile], names: list[str]) -> None:
    """Check that no later table lacks all columns of ids, which must have the same names in all.

    Raises:
        InputError: one does; the error says how to describe tables with names of their own.
    """
    if not tables or not set(names) <= set(tables[0].names):
        return
    for table in tables[1:]:
        if not set(names) & set(table.names):
            known = ", ".join(table.names[:40])
            raise InputError(
                f"has columns {known}, but not {' and '.join(names)}: tables with names of their "
                "own, as for several types of nodes, are described in meta.yaml (docs/tables.md)",
                file=table.path,
            )


def expand(patterns: list[str], table: TableFile, others: set[str]) -> list[str]:
    """Return the columns that these names and patterns, such as f*, match; never `others`.

    Patterns also don't match the row numbers that pandas writes, nor columns without a name.

    Raises:
        InputError: a pattern matches no column.
    """
    out: list[str] = []
    for pattern in patterns:
        if pattern in table.names or not any(mark in pattern for mark in "*?["):
            require_columns(table, [pattern])
            found = [pattern]
        else:
            found = [n for n in table.names if fnmatchcase(n, pattern) and n not in others]
            found = [n for n in found if not fullmatch(_ROW_NUMBERS, n)]
            if not found:
                require_columns(table, [pattern])
        out += [name for name in found if name not in out]
    return out


def plan(
    names: list[str], tables: list[TableFile], categorical: list[str], what: str
) -> list[EncodedColumn]:
    """Return how each column will become features, before any value is known.

    Raises:
        InputError: a column holds neither numbers nor categories.
    """
    out = []
    for name in names:
        kind = merged_kind(tables, name)
        if name not in categorical:
            refuse_commas(tables, name)
        if kind == cells.TIME:
            raise InputError(
                f"holds times, which can't be {what}: leave it out, or store numbers",
                file=tables[0].path,
                dataset=name,
            )
        if name in categorical or kind == cells.TEXT:
            out.append(EncodedColumn(name, CATEGORY))
        elif kind == cells.LIST:
            out.append(EncodedColumn(name, VECTOR, width=0))
        else:
            out.append(EncodedColumn(name))
    return out


def refuse_commas(tables: list[TableFile], name: str) -> None:
    """Raise InputError if the column may hold numbers with a comma."""
    for table in tables:
        if name in getattr(table, "with_commas", ()):
            raise InputError(
                "holds numbers with a comma: use --decimal-comma (0,5 is a half, 1,000 is 1), "
                f"--no-decimal-comma (lists of numbers) or --categorical {name} (names)",
                file=table.path,
                dataset=name,
            )


def read_kind(column: EncodedColumn) -> str:
    """Return the kind that a table is to read the column as."""
    return {
        CATEGORY: cells.TEXT,
        VECTOR: cells.LIST,
        NUMBER: cells.NUMBER,
    }[column.kind]


class FeatureFit:
    """The categories, widths and means of columns, collected in one pass over the rows."""

    def __init__(self, columns: list[EncodedColumn], missing: str) -> None:
        self.columns = columns
        self._missing = missing
        self._values: dict[str, set[str]] = {c.name: set() for c in columns if c.kind == CATEGORY}
        self._widths: dict[str, int] = {}
        self._sums = {column.name: [0.0, 0] for column in columns if column.kind == NUMBER}

    def needed(self) -> dict[str, str]:
        """Return the columns that must be read for the fit, and the kind of each."""
        return {
            column.name: read_kind(column)
            for column in self.columns
            if column.kind != NUMBER or self._missing == "mean"
        }

    def add(self, batch: Batch) -> None:
        for column in self.columns:
            array = batch.columns.get(column.name)
            if array is None:
                continue
            if column.kind == CATEGORY:
                values = self._values[column.name]
                texts = array.cast(pa.string())  # numbers if it is the column of classes too
                values.update(v for v in texts.unique().to_pylist() if v is not None)
                if len(values) > MAX_CATEGORIES:
                    for odd in cells.strangers(sorted(values))[:1]:
                        if (row := pc.index(texts, odd).as_py()) >= 0:
                            text = (
                                "is not a number, unlike most values: use --na if it means a "
                                "missing value"
                            )
                            raise batch.error(column.name, row, text, odd)
                    raise InputError(
                        f"holds more than {MAX_CATEGORIES} different texts, too many for features: "
                        "leave it out",
                        file=batch.file,
                        dataset=column.name,
                    )
            elif column.kind == VECTOR:
                lengths = array.drop_null().value_lengths()
                if len(lengths):
                    self._widths.setdefault(column.name, lengths[0].as_py())
            else:
                known = to_numpy(array.cast(pa.float64()).fill_null(math.nan))
                known = known[~np.isnan(known)]
                self._sums[column.name][0] += float(known.sum())
                self._sums[column.name][1] += known.shape[0]

    def finish(self) -> list[EncodedColumn]:
        out = []
        for column in self.columns:
            if column.kind == CATEGORY:
                values = sorted(self._values[column.name])
                out.append(replace(column, values=values, width=len(values)))
            elif column.kind == VECTOR:
                out.append(
                    replace(column, width=self._widths.get(column.name, 0), fill=self._fill())
                )
            else:
                total, count = self._sums[column.name]
                mean = total / count if count else 0.0
                fill = mean if self._missing == "mean" else self._fill()
                out.append(replace(column, fill=fill))
        return [column for column in out if column.width]

    def _fill(self) -> float | None:
        return None if self._missing == "refuse" else 0.0


def features_of(batch: Batch, columns: list[EncodedColumn], missing: str) -> np.ndarray:
    """Return float64 [n, F]; the table may lack columns if missing values are filled.

    Raises:
        InputError: a value is missing or no known category; the error names file, row and column.
    """
    out = np.zeros((batch.num_rows, sum(column.width for column in columns)))
    first = 0
    for column in columns:
        part = out[:, first : first + column.width]
        first += column.width
        array = batch.columns.get(column.name)
        if array is None:
            array = pa.nulls(batch.num_rows)
        if column.kind == NUMBER:
            values = to_numpy(array.cast(pa.float64()).fill_null(math.nan))
            _fill(part, values[:, None], column, batch, missing)
        elif column.kind == VECTOR:
            _fill(part, _vectors(array, column, batch), column, batch, missing)
        else:
            codes = category_codes(array.cast(pa.string()), column.values)
            absent = np.flatnonzero(codes < 0)
            if absent.shape[0] and missing == "refuse":
                raise _absent(batch, column.name, array, int(absent[0]))
            known = np.flatnonzero(codes >= 0)
            part[known, codes[known]] = 1
    return out


def _fill(
    part: np.ndarray, values: np.ndarray, column: EncodedColumn, batch: Batch, missing: str
) -> None:
    absent = np.isnan(values)
    if absent.any():
        if column.fill is None or missing == "refuse":
            row = int(np.argmax(absent.any(axis=1)))
            raise _absent(batch, column.name, pa.nulls(batch.num_rows), row)
        values = np.where(absent, column.fill, values)
    beyond = np.abs(values) > np.finfo(np.float32).max
    if beyond.any():
        row = int(np.argmax(beyond.any(axis=1)))
        found = float(values[row][beyond[row]][0])
        raise batch.error(column.name, row, "is not a finite float32", found)
    part[:] = values


def _vectors(array: pa.Array, column: EncodedColumn, batch: Batch) -> np.ndarray:
    out = np.full((batch.num_rows, column.width), math.nan)
    array = array.cast(pa.large_list(pa.float64()))
    lengths = to_numpy(array.value_lengths().fill_null(column.width))
    wrong = np.flatnonzero(lengths != column.width)
    if wrong.shape[0]:
        row = int(wrong[0])
        raise batch.error(
            column.name, row, f"must hold {column.width} numbers in each row", int(lengths[row])
        )
    known = to_numpy(array.is_valid())
    flat = to_numpy(array.drop_null().flatten().fill_null(math.nan))
    out[known] = flat.reshape(-1, column.width)
    return out


def _absent(batch: Batch, name: str, array: pa.Array, row: int) -> InputError:
    value = array[row].as_py()
    if value is None:
        return batch.error(name, row, "is missing: --missing zero or --missing mean fills it")
    return batch.error(
        name,
        row,
        "is not one of the values that this column had: --missing zero ignores it",
        value,
    )


def category_codes(array: pa.Array, values: list[str]) -> np.ndarray:
    """Return int64 [n]: the index of each text in `values`; -1 for null or unknown texts."""
    if not values:
        return np.full(len(array), -1)
    # Nulls are not found, since the values have none.
    found = pc.index_in(array, value_set=pa.array(values, array.type))
    return to_numpy(found.fill_null(-1)).astype(np.int64)


class Names:
    """The distinct values of a column of classes or relations, in order."""

    numbers = "--labels-as values"  # the option that makes them numbers, not names

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.known_rows = 0
        self.rows_of_minus_one = 0
        self._values: set[str] = set()

    @staticmethod
    def of(name: str, tables: list[TableFile], categorical: Collection[str]) -> Names:
        """Return the names of a column, as text if its numbers are names."""
        if name in categorical:
            return Names(name, cells.TEXT)
        refuse_commas(tables, name)
        kind = merged_kind(tables, name)
        padded = any(name in t.names and not t.is_canonical(name) for t in tables)
        return Names(name, cells.TEXT if kind == cells.INTEGER and padded else kind)

    def texts(self, batch: Batch) -> pa.Array:
        """Return the column as texts, null if unknown; whole numbers have no decimal point."""
        array = batch.columns.get(self.name)
        if array is None:
            return pa.nulls(batch.num_rows, pa.string())
        if self.kind == cells.NUMBER:
            values = to_numpy(array.fill_null(math.nan))
            known = values[~np.isnan(values)]
            odd = known[(known != np.rint(known)) | (np.abs(known) >= 1 << 53)]
            if odd.shape[0]:
                row = int(np.flatnonzero(values == odd[0])[0])
                raise batch.error(
                    self.name,
                    row,
                    f"is not a whole number: {self.numbers} predicts numbers",
                    float(odd[0]),
                )
            whole = np.where(np.isnan(values), 0, values).astype(np.int64)
            array = pa.array(whole, mask=np.isnan(values))
        return array.cast(pa.string())

    def add(self, batch: Batch) -> None:
        texts = self.texts(batch)
        self.known_rows += len(texts) - texts.null_count
        self.rows_of_minus_one += pc.sum(pc.equal(texts, _MINUS_ONE)).as_py() or 0
        found = texts.unique().to_pylist()
        self._values.update(value for value in found if value is not None)
        if len(self._values) > MAX_NAMES:
            raise InputError(
                f"holds more than {MAX_NAMES} different values", file=batch.file, dataset=self.name
            )

    def finish(self) -> list[str]:
        return sorted(self._values, key=None if self.read_kind() == cells.TEXT else int)

    def mostly_different(self, number: int) -> bool:
        """Return whether `number` distinct values are too many to be classes of these rows."""
        return number > _MANY_NAMES and 0 < self.known_rows < 2 * number

    def read_kind(self) -> str:
        numbers = (cells.INTEGER, cells.NUMBER)
        return self.kind if self.kind in numbers else cells.TEXT


def class_codes(batch: Batch, column: Names, classes: list[str], refusal: str) -> np.ndarray:
    """Return int64 [n]: the index of each row's value in `classes`, -1 if it is missing.

    Raises:
        InputError: a value is none of them; `refusal` is the message.
    """
    texts = column.texts(batch)
    codes = category_codes(texts, classes)
    wrong = np.flatnonzero((codes < 0) & to_numpy(texts.is_valid()))
    if wrong.shape[0]:
        row = int(wrong[0])
        raise batch.error(column.name, row, refusal, texts[row].as_py())
    return codes


def _minus_one(column: Names) -> str:
    rows = counted(column.rows_of_minus_one, "row")
    texts = f"={_MINUS_ONE},{_MINUS_ONE}.0" if column.kind == cells.NUMBER else f" {_MINUS_ONE}"
    return (
        f"{column.name} is {_MINUS_ONE} in {rows}, which becomes a class of its own: if this means "
        f"unknown, use --na{texts} (in every column)"
    )


def odd_values(
    tables: list[TableFile],
    features: list[EncodedColumn],
    classes: list[tuple[Names | None, list[str]]],
    categorical: Collection[str],
) -> list[str]:
    """Return notes on texts that may have been meant as missing values, numbers or ids.

    Args:
        tables: the tables that have the columns.
        features: the columns of features.
        classes: the columns of classes or relations, with all their values.
        categorical: names of columns whose values are meant as categories.

    Raises:
        InputError: nearly all values of a column are numbers, so that its texts must be errors.
    """
    notes = []
    named = [(names, values) for names, values in classes if names is not None]
    for names, values in named:
        if values and all(map(cells.is_date, values)):
            notes.append(
                f"{names.name} holds dates such as {values[0]}, each of which becomes a class: use "
                "--split-time for a split by time"
            )
        elif names.mostly_different(len(values)):
            notes.append(
                f"{names.name} has {len(values):,} different values in {names.known_rows:,} rows, "
                "each of which becomes a class: is it an id, or a number to predict?"
            )
        alone = not any(value.startswith("-") and value != _MINUS_ONE for value in values)
        if names.rows_of_minus_one and alone and names.name not in categorical:
            notes.append(_minus_one(names))
    of_features = [(column.name, column.values) for column in features]
    for name, values in [*((names.name, values) for names, values in named), *of_features]:
        found = [value for value in values if cells.means_missing(value)]
        if found:
            text = (
                f"{name} has the value {', '.join(found)}: if this means a missing value, use --na"
            )
            notes.append(f"{text} {','.join(found)}")
        if alike := cells.variants(values):
            one, other = (repr(value) for value in alike)
            notes.append(f"{name} has the values {one} and {other}, which count as different")
    for name, values in of_features:
        if name in categorical:
            continue
        texts = [value for value in values if not cells.is_number(value)]
        if odd := cells.strangers(values):
            notes.append(strange(tables, name, odd, len(values)))
        elif texts and all(cells.is_quantity(text) or cells.is_list(text) for text in texts):
            text = f"{name} has texts such as {texts[0]}, each of which becomes a feature"
            notes.append(f"{text}: store numbers where numbers are meant")
        elif len(values) > _MANY_FEATURES:
            text = f"{name} has {len(values):,} different values, each of which becomes a feature"
            notes.append(f"{text}: leave it out if they are names; --categorical {name} keeps them")
    return notes
