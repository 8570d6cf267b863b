"""Batches of rows of tables, whose columns are Arrow arrays of a few kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import cells
from hpcgnn.storage.importers.cells import BOOLEAN, INTEGER, LIST, NUMBER, TEXT, TIME

ARROW_TYPES = {
    INTEGER: pa.int64(),
    NUMBER: pa.float64(),
    TEXT: pa.string(),
    TIME: cells.NANOSECONDS,
}


@dataclass
class Batch:
    """Some rows of a table: `columns` by name; `place(k)` names the place of row k."""

    file: Path
    columns: dict[str, pa.Array]
    num_rows: int
    place: Callable[[int], str]

    def error(self, name: str, row: int, message: str, value: object = None) -> InputError:
        where = f"{self.place(row)}, {name}"
        return InputError(message, file=self.file, dataset=where, value=value)


def kind_of(type: pa.DataType) -> str:
    """Return the kind of column that an Arrow type is."""
    kinds = pa.types
    if kinds.is_dictionary(type):
        return kind_of(type.value_type)
    if kinds.is_integer(type):
        return INTEGER
    if kinds.is_floating(type) or kinds.is_decimal(type):
        return NUMBER
    if kinds.is_boolean(type):
        return BOOLEAN
    if kinds.is_temporal(type):
        return TIME
    if kinds.is_list(type) or kinds.is_large_list(type) or kinds.is_fixed_size_list(type):
        return LIST
    return TEXT


def first_line(error: Exception) -> str:
    """Return the message of an error in one short line."""
    return " ".join(str(error).split())[:160]


def to_numpy(array: pa.Array) -> np.ndarray:
    """Return an array without nulls as NumPy array."""
    return array.to_numpy(zero_copy_only=False)
