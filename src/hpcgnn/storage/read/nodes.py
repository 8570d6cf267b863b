"""Node data, read and checked in the same way from graph and partition files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from hpcgnn.storage import checks, schema
from hpcgnn.storage.checks import Place
from hpcgnn.storage.encoding import MAX_BYTES, Encoding
from hpcgnn.storage.read.reader import Reader, StoredColumn
from hpcgnn.storage.schema import DATASET, MAX_WIDTH, NAMES, Counts

SLAB = 1 << 18
KINDS = ("features", "labels", "split", "type", "typed_features", "original_ids", "named")


class StoredNames:
    """Names of the nodes, UTF-8: name i is bytes `indptr[i] .. indptr[i + 1] - 1` of `data`.

    Raises:
        InputError: the names are damaged, here and in every read.
    """

    def __init__(self, reader: Reader, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        self.indptr = reader.column(f"{NAMES}/indptr", ("int64",), (num_nodes + 1,))
        self.data = reader.column(f"{NAMES}/data", ("uint8",), (None,))

    def columns(self) -> list[StoredColumn]:
        return [self.indptr, self.data]

    def read(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `lengths` int64 [high - low] and the joined bytes of names `low .. high - 1`."""
        indptr = read_pointers(self.indptr, low, high, len(self.data))
        return np.diff(indptr), self.data.read(int(indptr[0]), int(indptr[-1]))

    def texts(self, low: int, high: int) -> list[str]:
        """Return names `low .. high - 1`.

        Raises:
            InputError: a name is not UTF-8.
        """
        lengths, data = self.read(low, high)
        ends = np.cumsum(lengths).tolist()
        raw = data.tobytes()
        try:
            return [
                raw[end - length : end].decode()
                for end, length in zip(ends, lengths.tolist(), strict=True)
            ]
        except UnicodeDecodeError:
            raise self.data.place().error("holds a name that is not UTF-8") from None

    def padded(self, low: int, high: int) -> np.ndarray:
        """Return names `low .. high - 1` as bytes, all of the width of the longest of them.

        Raises:
            InputError: a name is not UTF-8.
        """
        slabs = [
            np.array([text.encode() for text in self.texts(start, min(high, start + SLAB))], "S")
            for start in range(low, high, SLAB)
        ]
        return np.concatenate(slabs) if slabs else np.zeros(0, "S1")


def open_names(reader: Reader, num_nodes: int) -> StoredNames | None:
    """Return the names that the file holds, or None."""
    return StoredNames(reader, num_nodes) if reader.is_group(NAMES) else None


def open_encoding(reader: Reader) -> StoredColumn | None:
    """Return the dataset with the encoding of tables, or None."""
    return reader.column(DATASET, ("uint8",), (None,)) if reader.has(DATASET) else None


def read_encoding(column: StoredColumn | None) -> Encoding | None:
    """Return the encoding in the dataset, or None if there is no dataset."""
    if column is None:
        return None
    place: Place = column.place()
    if len(column) > MAX_BYTES:
        raise place.error("is too long", len(column))
    return Encoding.from_array(column.read(), place)


@dataclass
class CsrRows:
    """Sparse feature rows: `indptr` int64 [n+1], `indices` int32 [nnz], `data` float32 [nnz]."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.indptr.shape[0] - 1, self.width


@dataclass
class NodeData:
    """Columns of some nodes; None (or no entry) for those that are absent or were not requested.

    `features` float32|float16 [n, F] or `CsrRows`; `labels` int64 [n], int8 [n, T], float32 [n] or
    [n, W]; `split` int8 [n, S]; `type` int32 [n]; `typed_features[t]` float32 [n_t, F_t], for the
    nodes of type t in this order; `original_ids` int64 [n]; `named[name]` [n] or [n, W].
    """

    features: np.ndarray | CsrRows | None = None
    labels: np.ndarray | None = None
    split: np.ndarray | None = None
    type: np.ndarray | None = None
    typed_features: dict[int, np.ndarray] = field(default_factory=dict)
    original_ids: np.ndarray | None = None
    named: dict[str, np.ndarray] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by dataset name; sparse features are three arrays."""
        found: dict[str, np.ndarray | None] = {
            "nodes/labels": self.labels,
            "nodes/split": self.split,
            "nodes/type": self.type,
            "nodes/original_ids": self.original_ids,
        }
        if isinstance(self.features, CsrRows):
            for name in ("indptr", "indices", "data"):
                found[f"nodes/features/{name}"] = getattr(self.features, name)
        else:
            found["nodes/features"] = self.features
        for kind, rows in self.typed_features.items():
            found[f"nodes/typed_features/{kind}"] = rows
        for name, values in self.named.items():
            found[f"nodes/arrays/{name}"] = values
        return {name: array for name, array in found.items() if array is not None}


class NodeColumns:
    """The node columns below `prefix` in a file, with n rows each, checked against the counts."""

    def __init__(self, reader: Reader, prefix: str, num_rows: int, counts: Counts) -> None:
        self.num_rows = num_rows
        self._counts = counts
        self._columns: dict[str, StoredColumn] = {}
        self._typed: dict[int, StoredColumn] = {}
        self._counted = (0, np.zeros(0, np.int64))  # nodes of each type before a row
        self._named: dict[str, StoredColumn] = {}
        self._open_features(reader, f"{prefix}nodes/features")
        if counts.num_classes and counts.multilabel:
            shape: tuple[int | None, ...] = (num_rows, counts.num_classes)
            self._columns["labels"] = reader.column(f"{prefix}nodes/labels", ("int8",), shape)
        elif counts.num_classes:
            name = f"{prefix}nodes/labels"
            self._columns["labels"] = reader.column(name, ("int64",), (num_rows,))
        elif reader.has(f"{prefix}nodes/labels"):
            name = f"{prefix}nodes/labels"
            self._columns["labels"] = reader.rows(name, ("float32",), num_rows)
        if counts.num_splits:
            shape = (num_rows, counts.num_splits)
            self._columns["split"] = reader.column(f"{prefix}nodes/split", ("int8",), shape)
        if counts.num_types:
            name = f"{prefix}nodes/type"
            self._columns["type"] = reader.column(name, ("int32",), (num_rows,))
        if reader.has(f"{prefix}nodes/original_ids"):
            name = f"{prefix}nodes/original_ids"
            self._columns["original_ids"] = reader.column(name, ("int64",), (num_rows,))
        self._open_typed(reader, f"{prefix}nodes/typed_features")
        for name in reader.names(f"{prefix}nodes/arrays"):
            schema.check_name(name, reader.place(f"{prefix}nodes/arrays"))
            dataset = f"{prefix}nodes/arrays/{name}"
            self._named[name] = reader.rows(dataset, schema.TYPES, num_rows)

    @property
    def array_names(self) -> list[str]:
        return list(self._named)

    def columns(self) -> list[StoredColumn]:
        return [*self._columns.values(), *self._typed.values(), *self._named.values()]

    def read(self, low: int, high: int, which: Iterable[str] | None = None) -> NodeData:
        """Return the chosen `KINDS` (None: all) of rows `low .. high - 1`, every value checked.

        Raises:
            InputError: a value is invalid, or a dataset can't be read.
        """
        wanted = set(KINDS if which is None else which)
        data = NodeData()
        if "features" in wanted:
            data.features = self._read_features(low, high)
        if "labels" in wanted:
            data.labels = self._read_labels(low, high)
        if "split" in wanted:
            data.split = self._read_integers("split", low, high, 0, 4)
        if wanted & {"type", "typed_features"}:
            data.type = self._read_integers("type", low, high, 0, self._counts.num_types)
        if "typed_features" in wanted and data.type is not None:
            data.typed_features = self._read_typed(low, data.type)
        if "original_ids" in wanted and "original_ids" in self._columns:
            data.original_ids = self._columns["original_ids"].read(low, high)
        if "type" not in wanted:
            data.type = None
        if "named" in wanted:
            for name, column in self._named.items():
                data.named[name] = column.read(low, high)
                schema.check_array(data.named[name], column.place(low))
        return data

    def sparse_counts(self, low: int, high: int) -> np.ndarray | None:
        """Return the numbers of stored features of rows `low .. high - 1`; None if not sparse."""
        if "indptr" not in self._columns:
            return None
        return np.diff(
            read_pointers(self._columns["indptr"], low, high, len(self._columns["indices"]))
        )

    def row_bytes(self, low: int, high: int) -> np.ndarray:
        """Return the bytes in memory of each row of `low .. high - 1`: int64 `[high - low]`."""
        apart = {"indices", "data"}
        plain = [column for name, column in self._columns.items() if name not in apart]
        plain += self._named.values()
        total = np.full(high - low, sum(one.width * one.dtype.itemsize for one in plain), np.int64)
        stored = self.sparse_counts(low, high)
        if stored is not None:
            total += stored * sum(self._columns[name].dtype.itemsize for name in apart)
        types = self._read_integers("type", low, high, 0, self._counts.num_types)
        for kind, column in self._typed.items():
            total[types == kind] += column.width * column.dtype.itemsize
        return total

    def _open_features(self, reader: Reader, name: str) -> None:
        width = self._counts.num_features
        if width == 0:
            return
        if not reader.is_group(name):
            dtypes = ("float32", "float16")
            self._columns["features"] = reader.column(name, dtypes, (self.num_rows, width))
            return
        stored = reader.group_attribute(name, "width")
        if stored != width:
            raise reader.place(name).error(f"attribute width must be {width}", stored)
        indptr = reader.column(f"{name}/indptr", ("int64",), (self.num_rows + 1,))
        indices = reader.column(f"{name}/indices", ("int32",), (None,))
        data = reader.column(f"{name}/data", ("float32",), (len(indices),))
        self._columns |= {"indptr": indptr, "indices": indices, "data": data}

    def _open_typed(self, reader: Reader, group: str) -> None:
        for name in reader.names(group):
            kind = int(name) if name.isdecimal() and len(name) <= len(str(MAX_WIDTH)) else -1
            if str(kind) != name or not 0 <= kind < self._counts.num_types:
                raise reader.place(group).error(
                    f"names must be types 0 .. {self._counts.num_types - 1}", name
                )
            column = reader.column(f"{group}/{name}", ("float32",), (None, None))
            if column.shape[1] >= MAX_WIDTH:
                raise column.place().error("is too wide", column.shape[1])
            self._typed[kind] = column

    def _read_integers(
        self, kind: str, low: int, high: int, least: int, top: int
    ) -> np.ndarray | None:
        if kind not in self._columns:
            return None
        values = self._columns[kind].read(low, high)
        checks.in_range(values, least, top, self._columns[kind].place(low))
        return values

    def _read_labels(self, low: int, high: int) -> np.ndarray | None:
        if "labels" not in self._columns:
            return None
        column = self._columns["labels"]
        labels = column.read(low, high)
        schema.check_labels(labels, column.place(low), self._counts.num_classes)
        return labels

    def _read_features(self, low: int, high: int) -> np.ndarray | CsrRows | None:
        if "features" in self._columns:
            dense = self._columns["features"].read(low, high)
            checks.finite(dense, self._columns["features"].place(low))
            return dense
        if "indptr" not in self._columns:
            return None
        indices, data = self._columns["indices"], self._columns["data"]
        indptr = read_pointers(self._columns["indptr"], low, high, len(indices))
        first, last = int(indptr[0]), int(indptr[-1])
        rows = CsrRows(
            indptr - first,
            indices.read(first, last),
            data.read(first, last),
            self._counts.num_features,
        )
        checks.in_range(rows.indices, 0, rows.width, indices.place(first))
        checks.finite(rows.data, data.place(first))
        return rows

    def _read_typed(self, low: int, types: np.ndarray) -> dict[int, np.ndarray]:
        if not self._typed:
            return {}
        kinds = np.array(sorted(self._typed))
        # Ranges mostly follow each other: counting starts where the last one ended.
        end, before = self._counted
        if end > low or not end:
            end, before = 0, np.zeros(len(kinds), np.int64)
        before, here = before + self._count_types(kinds, end, low), _count(types, kinds)
        self._counted = low + len(types), before + here
        ends = low + len(types) == self.num_rows
        found = {}
        for place, kind in enumerate(kinds.tolist()):
            column = self._typed[kind]
            first = int(before[place])
            last = first + int(here[place])
            if last > len(column) or (ends and last != len(column)):
                raise column.place().error(f"must have a row for each node of type {kind}", last)
            found[kind] = column.read(first, last)
            checks.finite(found[kind], column.place(first))
        return found

    def _count_types(self, kinds: np.ndarray, low: int, high: int) -> np.ndarray:
        total = np.zeros(len(kinds), np.int64)
        for start in range(low, high, 1 << 20):
            stop = min(high, start + (1 << 20))
            types = self._read_integers("type", start, stop, 0, self._counts.num_types)
            if types is not None:
                total += _count(types, kinds)
        return total


def _count(types: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return the number of nodes of each of the ascending `kinds`, in memory for only these."""
    places = np.searchsorted(kinds, types)
    known = places < len(kinds)
    known[known] = kinds[places[known]] == types[known]
    return np.bincount(places[known], minlength=len(kinds))


def read_pointers(column: StoredColumn, low: int, high: int, total: int) -> np.ndarray:
    """Return row pointers `low .. high`, checked to run from 0 to `total` without falling."""
    values = column.read(low, high + 1)
    if values.size == 0:
        raise column.place().error("does not have the range asked for", (low, high))
    checks.monotone(values, column.place(low))
    checks.in_range(values, 0, total + 1, column.place(low))
    if low == 0 and values[0] != 0:
        raise column.place().error("must start at 0", values[0])
    if high == len(column) - 1 and values[-1] != total:
        raise column.place().error(f"must end at {total}", values[-1])
    return values
