"""Names, types, counts and limits of our HDF5 files, and checks of labels and named arrays."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from hpcgnn.storage import checks
from hpcgnn.storage.checks import Place

VERSION = 1
VERSION_OF_NAMED = 2
NEWEST_VERSION = 2
GRAPH = "hpcgnn-graph"
PARTITION = "hpcgnn-partition"
CHECKPOINT = "hpcgnn-checkpoint"
PREDICTIONS = "hpcgnn-predictions"
WEIGHTS = "weights"  # tensors by name, in other libraries' formats
WHAT = {
    GRAPH: "graph",
    PARTITION: "partition",
    CHECKPOINT: "checkpoint",
    PREDICTIONS: "predictions file",
    WEIGHTS: "weights file",
}
CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 28
MAX_COUNT = 1 << 56
MAX_WIDTH = 1 << 31
TRAIN, VALID, TEST = 1, 2, 3
NAMES = "nodes/original_names"
DATASET = "encoding/json"
EARLIER_ROW = "row_in_like"  # the named array of graphs that were read like an earlier one
FLOATS = ("float16", "float32", "float64")
TYPES = (*FLOATS, "int8", "int16", "int32", "int64", "uint8", "bool")  # dtypes of named arrays
LABEL_TYPES = ("float32", "int64", "int8")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Counts:
    """The counts of a graph's contents; 0 for every kind of content that it lacks."""

    num_nodes: int
    num_edges: int
    num_features: int = 0
    num_classes: int = 0
    multilabel: int = 0
    num_splits: int = 0
    num_relations: int = 0
    num_types: int = 0
    edge_width: int = 0

    def attributes(self) -> dict[str, int]:
        return asdict(self)


COUNT_NAMES = tuple(field.name for field in fields(Counts))

COUNT_LIMITS = dict.fromkeys(COUNT_NAMES, MAX_WIDTH) | {
    "num_nodes": MAX_COUNT,
    "num_edges": MAX_COUNT,
    "multilabel": 1,
}


def exceeded(counts: Mapping[str, int]) -> str | None:
    """Return the name of the first count outside its limits, or None if all are within them."""
    for name, limit in COUNT_LIMITS.items():
        if not 0 <= counts[name] <= limit:
            return name
    return None


def chunk_rows(tail: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the number of rows in a chunk of about `CHUNK_BYTES`, at least one."""
    row_bytes = int(np.prod(tail, dtype=np.int64)) * dtype.itemsize
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def attribute_checksum(attributes: Mapping[str, int | str]) -> str:
    """Return eight hex digits computed from all attributes except `checksum` itself."""
    kept = {name: value for name, value in attributes.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


def check_name(name: str, place: Place) -> None:
    """Check that a name is a letter or `_`, then letters, digits, `_`, `.` or `-`, at most 64.

    Raises:
        InputError: the name has another form.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise place.error(
            "names of arrays are a letter or _, then letters, digits, _ . -, at most 64",
            str(name)[:80],
        )


def check_array(values: np.ndarray, place: Place) -> None:
    """Check a named array of one of `TYPES`: no infinity; NaN stands for an unknown value.

    Raises:
        InputError: the array holds a value that is not allowed.
    """
    if values.dtype.kind == "f":
        checks.finite(values, place, or_nan=True)
    elif values.dtype.kind == "b":
        checks.in_range(values.view(np.uint8), 0, 2, place)


def check_labels(values: np.ndarray, place: Place, num_classes: int = 1 << 31) -> None:
    """Check labels: float32 (NaN unknown), int64 [n] classes (-1 unknown), int8 [n, T] (0, 1, -1).

    Raises:
        InputError: a value is not a valid label.
    """
    if values.dtype.kind == "f":
        checks.finite(values, place, or_nan=True)
    else:
        checks.in_range(values, -1, 2 if values.ndim == 2 else num_classes, place)


def as_labels(values: np.ndarray, place: Place) -> np.ndarray:
    """Return labels in the dtype in which files store them, without checking their values.

    Raises:
        InputError: the labels are not numbers, or not of shape [rows] or [rows, width].
    """
    kind = values.dtype.kind
    if values.ndim not in (1, 2) or kind not in "fiub" or 0 in values.shape[1:]:
        raise place.error("labels must be numbers of shape [rows] or [rows, width]", values.shape)
    if kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)
    if values.dtype == np.uint64 and values.size and int(values.max()) >= 1 << 63:
        raise place.error("must fit in signed 64-bit integers", int(values.max()))
    whole = values.astype(np.int64, copy=False)
    return whole if whole.ndim == 1 else np.clip(whole, -2, 2).astype(np.int8)  # -2, 2: refused


def version_of(columns: Mapping[str, np.dtype]) -> int:
    """Return the oldest format version whose readers know all these datasets, given by name."""
    for name, dtype in columns.items():
        group, _, last = name.rpartition("/")
        of_nodes = group.endswith("nodes")
        if group.endswith("nodes/arrays") or (last in ("labels", "split") and not of_nodes):
            return VERSION_OF_NAMED
        if name == DATASET or group == NAMES:
            return VERSION_OF_NAMED
        if last == "labels" and dtype.kind == "f":
            return VERSION_OF_NAMED
    return VERSION
