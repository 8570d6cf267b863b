"""Files of predictions, by the suffix of their name: HDF5, Parquet, NumPy's npz, or CSV.

Rows are written slab by slab, of all arrays together or (npz) one array after the other; a file
gets its name when it is complete. Tables (CSV, Parquet) have the columns `original_id`, `class` or
`value`, `probability_0` and so on, and `embedding_0` and so on; for several labels at once
`class_0` and so on, 0 or 1; for several numbers `value_0` and so on. For edges and pairs of nodes
the first columns are `source_id` and `target_id`; for outputs of an unknown task `output_0` and so
on. If classes have names, `class` holds these, and columns are named after them
(`probability_red`). HDF5 and npz hold the numbers of classes, and `class_names`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.read import reader
from hpcgnn.storage.schema import PREDICTIONS, VERSION
from hpcgnn.storage.write import atomic

Rows = Mapping[str, np.ndarray]
Attributes = Mapping[str, int | str | dict]

ENDINGS = (".h5", ".parquet", ".csv", ".npz")
_CSV_IDS = (("original_id",), ("source_id", "target_id"))
_LONGEST_HEADER = 64 << 20
_KEY = b"hpcgnn"  # key of our metadata in a Parquet file
_COLUMNS = {
    "original_ids": "original_id",
    "source_ids": "source_id",
    "target_ids": "target_id",
    "classes": "class",
    "values": "value",
    "probabilities": "probability",
    "embeddings": "embedding",
    "output": "output",
}
_PER_CLASS = ("classes", "probabilities")


class PredictionFile(Protocol):
    """A predictions file that one rank is writing."""

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        """Make room for arrays of `num_nodes` rows like these."""

    def put(self, low: int, slabs: Rows) -> None:
        """Write the rows from `low` on."""

    def finish(self, attributes: Attributes) -> None:
        """Write the attributes and what else is left."""


def check_ending(path: Path) -> None:
    """Check that a name's suffix determines the kind of file.

    Raises:
        InputError: an unknown suffix.
    """
    if path.suffix not in ENDINGS:
        kinds = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        raise InputError(f"-o must end in {kinds}, which selects the format", value=str(path))


def format_of(path: Path) -> str | None:
    """Return `PREDICTIONS` for a file written here, whatever its suffix; else its HDF5 format."""
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                titles = next(csv.reader([file.readline(_LONGEST_HEADER)]), [])
            return PREDICTIONS if _are_ours(titles) else None
        if path.suffix == ".parquet":
            import pyarrow.parquet

            found = pyarrow.parquet.read_schema(path).metadata or {}
            return PREDICTIONS if _KEY in found else None
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = set(archive.namelist())
            ids = {"original_ids.npy", "source_ids.npy"} & names
            return PREDICTIONS if ids and "attributes.npy" in names else None
    except (OSError, csv.Error, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    return reader.format_of(path)


def _are_ours(titles: Sequence[str]) -> bool:
    """Return whether a CSV with these columns, which is all that marks one, was written here."""
    ids = next((count for count in (1, 2) if tuple(titles[:count]) in _CSV_IDS), 0)
    results = {title.partition("_")[0] for title in titles[ids:]}
    named = "class" not in results or "probability" in results  # labels alone are a user's
    return bool(ids and results and named and results <= set(_COLUMNS.values()))


def passes(path: Path, names: list[str]) -> list[list[str]]:
    """Return the arrays that are written together, in order; the same on all ranks."""
    return [[name] for name in names] if path.suffix == ".npz" else [names]


@contextmanager
def create(path: Path, class_names: Sequence[str] = ()) -> Iterator[PredictionFile]:
    """Create a new file of the kind that its suffix determines.

    Args:
        class_names: of the classes 0, 1, ...; empty if they have none.

    Raises:
        InputError: an unknown suffix.
        OutputError: it can't be written; a file that was there before is intact.
    """
    check_ending(path)
    if path.suffix == ".h5":
        with atomic.create(path) as output:
            yield _Hdf5(output, class_names)
        return
    with atomic.claim(path) as temporary:
        try:
            with temporary.open("r+b") as file:
                kinds: dict[str, type[_Npz | _Csv | _Parquet]] = {
                    ".npz": _Npz,
                    ".csv": _Csv,
                    ".parquet": _Parquet,
                }
                yield kinds[path.suffix](file, class_names)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise atomic.write_error(path, error) from None
        atomic.publish(temporary, path)


class _Hdf5:
    def __init__(self, output: atomic.OutputFile, class_names: Sequence[str]) -> None:
        self._output = output
        self._class_names = _encoded(class_names)

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        for name, array in like.items():
            self._output.dataset(name, array.dtype, (num_nodes, *array.shape[1:]))
        if len(self._class_names):
            names = self._class_names
            self._output.dataset("class_names", names.dtype, names.shape)[...] = names

    def put(self, low: int, slabs: Rows) -> None:
        for name, rows in slabs.items():
            self._output.h5[name][low : low + len(rows)] = rows
        self._output.check()

    def finish(self, attributes: Attributes) -> None:
        self._output.set_attributes({"format": PREDICTIONS, "version": VERSION, **attributes})


class _Npz:
    """A writer of arrays by name, and of `attributes` as JSON text."""

    def __init__(self, file: IO[bytes], class_names: Sequence[str]) -> None:
        self._archive = zipfile.ZipFile(file, "w")
        self._class_names = class_names
        self._num_nodes = 0
        self._member: IO[bytes] | None = None

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        self._num_nodes = num_nodes

    def put(self, low: int, slabs: Rows) -> None:
        ((name, rows),) = slabs.items()
        if self._member is None:
            shape = (self._num_nodes, *rows.shape[1:])
            kind = rows.dtype
            if kind.kind == "S":  # stored as str, which NumPy prints as text
                kind = np.dtype(f"U{kind.itemsize}")
            self._member = self._open(name, kind, shape)
        if rows.dtype.kind == "S":
            rows = np.char.decode(rows, "utf-8").astype(f"U{rows.dtype.itemsize}")
        self._member.write(np.ascontiguousarray(rows).tobytes())
        if low + len(rows) == self._num_nodes:
            self._member.close()
            self._member = None

    def finish(self, attributes: Attributes) -> None:
        if self._class_names:
            names = np.array(self._class_names)
            with self._open("class_names", names.dtype, names.shape) as member:
                member.write(names.tobytes())
        text = np.array(json.dumps({"format": PREDICTIONS, **attributes}, sort_keys=True))
        with self._open("attributes", text.dtype, ()) as member:
            member.write(text.tobytes())
        self._archive.close()

    def _open(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> IO[bytes]:
        member = self._archive.open(f"{name}.npy", "w", force_zip64=True)
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(member, header)
        return member


class _Csv:
    def __init__(self, file: IO[bytes], class_names: Sequence[str]) -> None:
        self._file = file
        self._class_names = class_names

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        line = io.StringIO()
        titles = [title for title, _ in _columns(like, self._class_names)]
        csv.writer(line, lineterminator="\n").writerow(titles)
        self._file.write(line.getvalue().encode())

    def put(self, low: int, slabs: Rows) -> None:
        import pyarrow.csv

        table = _table(slabs, self._class_names)
        quotes = "needed" if _needs_quotes(table) else "none"
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style=quotes)
        pyarrow.csv.write_csv(table, self._file, options)

    def finish(self, attributes: Attributes) -> None:
        """Do nothing: a CSV holds only its rows."""


class _Parquet:
    """A writer of a table whose metadata key `hpcgnn` holds the attributes as JSON text."""

    def __init__(self, file: IO[bytes], class_names: Sequence[str]) -> None:
        self._file = file
        self._class_names = class_names

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        import pyarrow.parquet

        schema = _table(like, self._class_names).schema
        self._writer = pyarrow.parquet.ParquetWriter(
            self._file, schema.with_metadata({_KEY: b"predictions"})
        )

    def put(self, low: int, slabs: Rows) -> None:
        table = _table(slabs, self._class_names)
        self._writer.write_table(table.cast(self._writer.schema))

    def finish(self, attributes: Attributes) -> None:
        text = json.dumps({"format": PREDICTIONS, **attributes}, sort_keys=True)
        self._writer.add_key_value_metadata({_KEY: text.encode()})
        self._writer.close()


def _table(rows: Rows, class_names: Sequence[str]) -> Any:
    """Return a pyarrow table; ids that are text and class names are columns of strings."""
    import pyarrow

    found = _columns(rows, class_names)
    arrays = []
    for title, column in found:
        if column.dtype.kind == "S":
            arrays.append(pyarrow.array(column.tolist(), pyarrow.binary()).cast(pyarrow.string()))
        elif title == "class" and class_names:
            names = pyarrow.array(class_names, pyarrow.string())
            arrays.append(names.take(pyarrow.array(column)))
        else:
            arrays.append(pyarrow.array(np.ascontiguousarray(column)))
    return pyarrow.Table.from_arrays(arrays, names=[title for title, _ in found])


def _needs_quotes(table: Any) -> bool:
    """Return whether a text has characters special in CSV; pyarrow looks only at column types."""
    import pyarrow
    import pyarrow.compute

    texts = [column for column in table.columns if pyarrow.types.is_string(column.type)]
    special = '[",\r\n]|^$'
    return any(
        pyarrow.compute.any(pyarrow.compute.match_substring_regex(column, special)).as_py()
        for column in texts
    )


def _columns(rows: Rows, class_names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    found: list[tuple[str, np.ndarray]] = []
    for name, title in _COLUMNS.items():
        array = rows.get(name)
        if array is not None and array.ndim == 1:
            found.append((title, array))
        elif array is not None:
            named = name in _PER_CLASS and len(class_names) >= array.shape[1]
            endings = class_names[: array.shape[1]] if named else range(array.shape[1])
            found += [(f"{title}_{end}", array[:, k]) for k, end in enumerate(endings)]
    return found


def _encoded(texts: Sequence[str]) -> np.ndarray:
    """Return the texts as fixed-width UTF-8."""
    return np.array([text.encode() for text in texts], np.bytes_)
