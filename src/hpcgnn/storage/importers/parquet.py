"""Edges in Parquet: one file, or a folder of part files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.source import Column, EdgeChunk, ImportOptions, Source, as_ids
from hpcgnn.storage.importers.text import check_inflation, open_file

_ROWS = 1 << 16
_OWN_MEMORY = 64 << 20
_ROW_BYTES = 16  # of two ends
_ENDS = (
    ("source", "destination"),
    ("source", "target"),
    ("src", "dst"),
    ("from", "to"),
    ("head", "tail"),
)


def prepare() -> int:
    """Load pyarrow; the bytes its pages and dictionaries take beside our chunks.

    Raises:
        InputError: it is not installed.
    """
    _pyarrow()
    return _OWN_MEMORY


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install pyarrow") from None
    return pyarrow


def read_parquet(paths: list[Path], options: ImportOptions) -> Source:
    """The edges of Parquet files; `options.columns` names source, destination and weight.

    Raises:
        InputError: pyarrow is missing, no such column, a null, no integers.
    """
    files: list[Path] = []
    keys: set[str] = set()
    for path in paths:
        found = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
        if not found:
            raise InputError("no *.parquet files in this folder", file=path)
        files += found
        if path.is_dir():
            keys.update(*(_folder_keys(file.relative_to(path)) for file in found))
    with _open(files[0]) as table:
        names = table.schema_arrow.names
    for name in options.columns:
        if name in keys - set(names):
            raise InputError(
                "is in the names of folders alone, which are not read: write it into the files",
                file=paths[0],
                value=name,
            )
    chosen = _columns(names, files[0], options)
    unused = [name for name in names if name not in chosen]
    unused += [f"{name} (in the names of folders)" for name in sorted(keys - set(names))]
    return Source(
        paths[0],
        _edges(files, chosen),
        rows_as_given=True,
        notes=[f"ignored: {', '.join(unused)}"] if unused else [],
    )


def _folder_keys(file: Path) -> set[str]:
    """The columns that Hive and Spark put into names of folders, as in year=2020/part-0.parquet."""
    return {part.partition("=")[0] for part in file.parts[:-1] if "=" in part}


def _edges(files: list[Path], columns: tuple[str, ...]) -> Iterator[EdgeChunk]:
    for path in files:
        with _open(path) as table:
            _check_names(table.schema_arrow.names, columns, path)
            yield from _file_edges(table, path, columns)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A Parquet file, whose pages are compared with the checksums they have."""
    pyarrow = _pyarrow()
    with open_file(path) as file:
        stored = os.fstat(file.fileno()).st_size
        try:
            table = pyarrow.parquet.ParquetFile(
                file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
            )
        except (pyarrow.ArrowException, ValueError) as error:
            raise InputError(f"is no Parquet file: {_first_line(error)}", file=path) from None
        check_inflation(path, stored, _ROW_BYTES * table.metadata.num_rows)
        yield table


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _columns(names: list[str], path: Path, options: ImportOptions) -> tuple[str, ...]:
    known = ", ".join(names)
    if options.columns:
        if not 2 <= len(options.columns) <= 3:
            raise InputError("--columns takes source, destination and weight", file=path)
        if len(set(options.columns)) != len(options.columns):
            raise InputError("--columns names a column twice", file=path, value=options.columns)
        _check_names(names, options.columns, path)
        return options.columns[: 3 if options.weights else 2]
    fitting = [pair for pair in _ENDS if set(pair) <= set(names)]
    if len(fitting) != 1:
        raise InputError(
            f"has columns {known}: choose source and destination with --columns A,B", file=path
        )
    pair = fitting[0]
    chosen = (*pair, "weight") if options.weights and "weight" in names else pair
    _check_names(names, chosen, path)
    return chosen


def _check_names(names: list[str], columns: tuple[str, ...], path: Path) -> None:
    for name in columns:
        if names.count(name) != 1:
            which = "this one twice" if name in names else "not this one"
            raise InputError(f"has columns {', '.join(names)}, {which}", file=path, value=name)


def _file_edges(table: Any, path: Path, columns: tuple[str, ...]) -> Iterator[EdgeChunk]:
    pyarrow = _pyarrow()
    first = 0
    batches = table.iter_batches(batch_size=_ROWS, columns=list(columns), use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"is damaged: {_first_line(error)}", file=path) from None
        if batch is None:
            return
        values = [_values(batch.column(name), path, name, first) for name in columns]
        ends = [
            as_ids(array, Column(path, name, iter(())))
            for array, name in zip(values, columns[:2], strict=False)
        ]
        weight = values[2] if len(values) > 2 else None
        yield EdgeChunk(ends[0], ends[1], lambda k, f=first: f"row {f + k}", weight=weight)  # type: ignore[misc]
        first += batch.num_rows


def _values(column: Any, path: Path, name: str, first: int) -> np.ndarray:
    if column.null_count:
        row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(f"row {row} is null", file=path, dataset=name)
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise InputError("must hold numbers", file=path, dataset=name, value=str(column.type))
    return values
