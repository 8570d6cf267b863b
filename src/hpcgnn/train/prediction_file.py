"""Files of predictions, by the ending of their name: HDF5, Parquet, NumPy's npz, or CSV.

Rows come slab by slab, of all arrays together or (npz) of one array after the other; a file has its
name when it is whole. Tables (CSV, Parquet) have the columns `original_id`, `class` or `value`,
`probability_0` and on, and `embedding_0` and on; with several labels at once `class_0` and on, 0 or
1, with several numbers `value_0` and on. Of edges and pairs of nodes the first columns are
`source_id` and `target_id`; of what is not known otherwise, `output_0` and on.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
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
_CSV_BEGINS = (b"original_id,", b"source_id,target_id,")
_KEY = b"hpcgnn"  # of our metadata in a Parquet file
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


class PredictionFile(Protocol):
    """A file being written by one rank."""

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        """Make room for arrays of `num_nodes` rows like these."""

    def put(self, low: int, slabs: Rows) -> None:
        """Write the rows from `low` on."""

    def finish(self, attributes: Attributes) -> None:
        """Say where they come from, and write the last."""


def check_ending(path: Path) -> None:
    """Refuse a name that doesn't say which kind of file it is to be.

    Raises:
        InputError: an unknown ending.
    """
    if path.suffix not in ENDINGS:
        kinds = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        raise InputError(f"-o must end in {kinds}, which says what is written", value=str(path))


def format_of(path: Path) -> str | None:
    """`PREDICTIONS` for a file that was written here, whatever its ending; else its HDF5 format."""
    try:
        if path.suffix == ".csv":
            with path.open("rb") as file:
                begin = file.read(max(map(len, _CSV_BEGINS)))
            return PREDICTIONS if begin.startswith(_CSV_BEGINS) else None
        if path.suffix == ".parquet":
            return _format_of_parquet(path)
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = set(archive.namelist())
            ids = {"original_ids.npy", "source_ids.npy"} & names
            return PREDICTIONS if ids and "attributes.npy" in names else None
    except (OSError, zipfile.BadZipFile):
        return None
    return reader.format_of(path)


def passes(path: Path, names: list[str]) -> list[list[str]]:
    """Which arrays are put together; the same on all ranks."""
    return [[name] for name in names] if path.suffix == ".npz" else [names]


@contextmanager
def create(path: Path) -> Iterator[PredictionFile]:
    """A new file of the kind that its ending asks for.

    Raises:
        InputError: an unknown ending.
        OutputError: it can't be written; what was there before is intact.
    """
    check_ending(path)
    if path.suffix == ".h5":
        with atomic.create(path) as output:
            yield _Hdf5(output)
        return
    with atomic.claim(path) as temporary:
        try:
            with temporary.open("r+b") as file:
                yield _KINDS[path.suffix](file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise atomic.write_error(path, error) from None
        atomic.publish(temporary, path)


class _Hdf5:
    def __init__(self, output: atomic.OutputFile) -> None:
        self._output = output

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        for name, array in like.items():
            self._output.dataset(name, array.dtype, (num_nodes, *array.shape[1:]))

    def put(self, low: int, slabs: Rows) -> None:
        for name, rows in slabs.items():
            self._output.h5[name][low : low + len(rows)] = rows
        self._output.check()

    def finish(self, attributes: Attributes) -> None:
        self._output.set_attributes({"format": PREDICTIONS, "version": VERSION, **attributes})


class _Npz:
    """Arrays by name, and `attributes`: JSON text."""

    def __init__(self, file: IO[bytes]) -> None:
        self._archive = zipfile.ZipFile(file, "w")
        self._num_nodes = 0
        self._member: IO[bytes] | None = None

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        self._num_nodes = num_nodes

    def put(self, low: int, slabs: Rows) -> None:
        ((name, rows),) = slabs.items()
        if self._member is None:
            shape = (self._num_nodes, *rows.shape[1:])
            self._member = self._open(name, rows.dtype, shape)
        self._member.write(np.ascontiguousarray(rows).tobytes())
        if low + len(rows) == self._num_nodes:
            self._member.close()
            self._member = None

    def finish(self, attributes: Attributes) -> None:
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
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        names = [column for column, _ in _columns(like)]
        self._file.write((",".join(names) + "\n").encode())

    def put(self, low: int, slabs: Rows) -> None:
        columns = _columns(slabs)
        kinds = [(name, column.dtype) for name, column in columns]
        records = np.empty(len(columns[0][1]), kinds)
        for name, column in columns:
            records[name] = column
        # Nine digits tell every float32 apart.
        formats = ["%.9g" if column.dtype.kind == "f" else "%d" for _, column in columns]
        np.savetxt(self._file, records, fmt=",".join(formats))

    def finish(self, attributes: Attributes) -> None:
        """A CSV holds nothing but its rows."""


class _Parquet:
    """The columns of a CSV, in groups of rows as they come; attributes as JSON text."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._arrow, self._parquet = _pyarrow()
        self._writer: Any = None

    def lay_out(self, num_nodes: int, like: Rows) -> None:
        fields = [
            (name, self._arrow.from_numpy_dtype(column.dtype)) for name, column in _columns(like)
        ]
        self._writer = self._parquet.ParquetWriter(self._file, self._arrow.schema(fields))

    def put(self, low: int, slabs: Rows) -> None:
        columns = {name: np.ascontiguousarray(column) for name, column in _columns(slabs)}
        self._writer.write_table(self._arrow.table(columns))

    def finish(self, attributes: Attributes) -> None:
        text = json.dumps({"format": PREDICTIONS, **attributes}, sort_keys=True)
        self._writer.add_key_value_metadata({_KEY: text.encode()})
        self._writer.close()


_KINDS: dict[str, Callable[[IO[bytes]], PredictionFile]] = {
    ".npz": _Npz,
    ".csv": _Csv,
    ".parquet": _Parquet,
}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "a .parquet file needs pyarrow: pip install 'hpcgnn[parquet]', or choose .csv"
        ) from None
    return pyarrow, parquet


def _format_of_parquet(path: Path) -> str | None:
    arrow, parquet = _pyarrow()
    try:
        found = parquet.read_metadata(path).metadata or {}
    except arrow.ArrowInvalid:
        return None
    return PREDICTIONS if _KEY in found else None


def _columns(rows: Rows) -> list[tuple[str, np.ndarray]]:
    found: list[tuple[str, np.ndarray]] = []
    for name, title in _COLUMNS.items():
        array = rows.get(name)
        if array is not None and array.ndim == 1:
            found.append((title, array))
        elif array is not None:
            found += [(f"{title}_{k}", array[:, k]) for k in range(array.shape[1])]
    return found
