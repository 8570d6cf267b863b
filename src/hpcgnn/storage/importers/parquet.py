"""Edges in Parquet: one file, or a folder of part files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.reading import reading
from hpcgnn.storage.importers.source import Column, Edges, Options, Source, as_integers

_ROWS = 1 << 16
_OWN_MEMORY = 64 << 20
_ENDS = (
    ("source", "destination"),
    ("source", "target"),
    ("src", "dst"),
    ("from", "to"),
    ("head", "tail"),
)


def prepare() -> int:
    """Load pyarrow; the bytes its pages and dictionaries take beside our pieces.

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


def read_parquet(paths: list[Path], options: Options) -> Source:
    """The edges of Parquet files; `options.columns` names source, destination and weight.

    Raises:
        InputError: pyarrow is missing, no such column, a null, no integers.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
        if not found:
            raise InputError("no *.parquet files in this folder", file=path)
        files += found
    return Source(paths[0], _edges(files, options))


def _edges(files: list[Path], options: Options) -> Iterator[Edges]:
    chosen: tuple[str, ...] = ()
    for path in files:
        table = _open(path)
        with reading(path):
            chosen = chosen or _columns(table.schema_arrow.names, path, options)
            yield from _file_edges(table, path, chosen)


def _open(path: Path) -> Any:
    pyarrow = _pyarrow()
    with reading(path):
        try:
            return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        except pyarrow.ArrowException as error:
            raise InputError(f"is no Parquet file: {error}", file=path) from None


def _columns(names: list[str], path: Path, options: Options) -> tuple[str, ...]:
    known = ", ".join(names)
    if options.columns:
        if not 2 <= len(options.columns) <= 3:
            raise InputError("--columns takes source, destination and weight", file=path)
        for name in options.columns:
            if name not in names:
                raise InputError(f"has columns {known}, not this one", file=path, value=name)
        return options.columns[: 3 if options.weights else 2]
    for pair in _ENDS:
        if set(pair) <= set(names):
            return (*pair, "weight") if options.weights and "weight" in names else pair
    raise InputError(
        f"has columns {known}: choose source and destination with --columns A,B", file=path
    )


def _file_edges(table: Any, path: Path, columns: tuple[str, ...]) -> Iterator[Edges]:
    pyarrow = _pyarrow()
    first = 0
    names = list(dict.fromkeys(columns))
    batches = table.iter_batches(batch_size=_ROWS, columns=names, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except pyarrow.ArrowException as error:
            raise InputError(f"is damaged: {error}", file=path) from None
        if batch is None:
            return
        values = [_values(batch.column(name), path, name, first) for name in columns]
        ends = [
            as_integers(array, Column(path, name, iter(())))
            for array, name in zip(values, columns[:2], strict=False)
        ]
        weight = values[2] if len(values) > 2 else None
        yield Edges(ends[0], ends[1], lambda k, f=first: f"row {f + k}", weight=weight)  # type: ignore[misc]
        first += batch.num_rows


def _values(column: Any, path: Path, name: str, first: int) -> np.ndarray:
    if column.null_count:
        row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(f"row {row} is null", file=path, dataset=name)
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise InputError("must hold numbers", file=path, dataset=name, value=str(column.type))
    return values
