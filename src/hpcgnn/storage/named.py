"""What a graph may hold beside its usual columns: named arrays, float labels, labels of edges."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from hpcgnn.storage import checks
from hpcgnn.storage.checks import Place
from hpcgnn.storage.schema import VERSION, VERSION_OF_NAMED

FLOATS = ("float16", "float32", "float64")
TYPES = (*FLOATS, "int8", "int16", "int32", "int64", "uint8", "bool")  # of named arrays
LABEL_TYPES = ("float32", "int64", "int8")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


def check_name(name: str, place: Place) -> None:
    """A letter, then letters, digits, `_`, `.` and `-`, at most 64.

    Raises:
        InputError: another name.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise place.error(
            "names of arrays are a letter, then letters, digits, _ . -, at most 64", str(name)[:80]
        )


def check_array(values: np.ndarray, place: Place) -> None:
    """A named array of one of `TYPES`: no infinity; NaN stands for an unknown value.

    Raises:
        InputError: a value out of place.
    """
    if values.dtype.kind == "f":
        checks.finite(values, place, or_nan=True)
    elif values.dtype.kind == "b":
        checks.in_range(values.view(np.uint8), 0, 2, place)


def check_labels(values: np.ndarray, place: Place, num_classes: int = 1 << 31) -> None:
    """float32 numbers (NaN unknown), int64 [n] classes (-1) or int8 [n, T] of 0, 1 and -1.

    Raises:
        InputError: a value that is none.
    """
    if values.dtype.kind == "f":
        checks.finite(values, place, or_nan=True)
    else:
        checks.in_range(values, -1, 2 if values.ndim == 2 else num_classes, place)


def as_labels(values: np.ndarray, place: Place) -> np.ndarray:
    """Labels in the type that files keep them in, unchecked.

    Raises:
        InputError: neither numbers nor one or several for each row.
    """
    kind = values.dtype.kind
    if values.ndim not in (1, 2) or kind not in "fiub" or 0 in values.shape[1:]:
        raise place.error("labels must be numbers of shape [rows] or [rows, width]", values.shape)
    if kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)
    if values.dtype == np.uint64 and values.size and int(values.max()) >= 1 << 63:
        raise place.error("must fit into 64 bits with sign", int(values.max()))
    whole = values.astype(np.int64, copy=False)
    return whole if whole.ndim == 1 else np.clip(whole, -2, 2).astype(np.int8)  # -2, 2: refused


def version_of(columns: Mapping[str, np.dtype]) -> int:
    """The oldest version of the format whose readers know all these datasets, given by name."""
    for name, dtype in columns.items():
        group, _, last = name.rpartition("/")
        of_nodes = group.endswith("nodes")
        if group.endswith("nodes/arrays") or (last in ("labels", "split") and not of_nodes):
            return VERSION_OF_NAMED
        if last == "labels" and dtype.kind == "f":
            return VERSION_OF_NAMED
    return VERSION
