"""Tables in files: text, or Parquet, read batch by batch."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.parquet

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import cells
from hpcgnn.storage.importers.ahead import ahead
from hpcgnn.storage.importers.arrays import together
from hpcgnn.storage.importers.cells import BOOLEAN, INTEGER, LIST, NUMBER, TEXT, TIME
from hpcgnn.storage.importers.opening import check_inflation, open_file
from hpcgnn.storage.importers.source import Over
from hpcgnn.storage.importers.table_batches import ARROW_TYPES, Batch, first_line, kind_of
from hpcgnn.storage.importers.table_options import TextForm
from hpcgnn.storage.importers.text_table import TextTable

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1 << 16
_AHEAD = 2  # batches that each thread decodes in advance
_ROW_BYTES = 16  # bytes per row of an unpacked Parquet file, as the inflation check assumes


class TableFile(Protocol):
    """A table that is ready to be read.

    Attributes:
        path: the file.
        names: the names of the columns.
        kinds: the kinds of the columns, judged by the start of the file: INTEGER, NUMBER, BOOLEAN,
            TEXT, TIME or LIST (of numbers).
        num_rows: the number of rows; None if it is known only after reading.
    """

    path: Path
    names: list[str]
    kinds: dict[str, str]
    num_rows: int | None

    def batches(self, kinds: dict[str, str], over: Over = map) -> Iterator[Batch]:
        """Yield the columns that are keys of `kinds`, as arrays of that kind; may be called again.

        `over` applies the conversion to pieces of text.

        Raises:
            InputError: the file is damaged, or a value is not of its kind.
        """

    def is_canonical(self, name: str) -> bool:
        """Return whether integers in the column are written without leading zeros or plus."""


def open_tables(paths: list[Path], form: TextForm) -> list[TableFile]:
    """Return the tables in these files, and in the Parquet files of folders.

    Raises:
        InputError: a file is missing, damaged, or no table.
    """
    tables: list[TableFile] = []
    for path in paths:
        if path.is_dir():
            found = sorted(path.glob("**/*.parquet"))
            if not found:
                raise InputError("no *.parquet files in this folder", file=path)
            tables += [ParquetTable(file, path, form.missing) for file in found]
        elif path.suffix == ".parquet":
            tables.append(ParquetTable(path, missing=form.missing))
        else:
            tables.append(TextTable(path, form))
    return tables


def unused_columns(tables: list[TableFile], used: set[str]) -> list[str]:
    """Return the columns of these tables that are not used, those in the names of folders last."""
    unused: list[str] = []
    for table in tables:
        named = [n or f"column {k + 1}, which has no name" for k, n in enumerate(table.names)]
        unused += [n for n in named if n not in used and n not in unused]
    for table in tables:
        keys = getattr(table, "folder_keys", [])
        folders = [f"{key} (in the names of folders)" for key in keys]
        unused += sorted(name for name in folders if name not in unused)
    return unused


class ParquetTable:
    """A Parquet file, whose pages are checked against their checksums, if it has any."""

    def __init__(
        self, path: Path, folder: Path | None = None, missing: tuple[str, ...] = ()
    ) -> None:
        self.path, self.folder = path, folder
        self._missing = missing
        self.folder_keys = [] if folder is None else _folder_keys(path.relative_to(folder))
        with self._open() as table:
            schema = table.schema_arrow
            self.num_rows: int | None = table.metadata.num_rows
        self.names = list(schema.names)
        self.kinds = {field.name: kind_of(field.type) for field in schema}

    def is_canonical(self, name: str) -> bool:
        return True

    @contextmanager
    def _open(self, metadata: Any = None) -> Iterator[Any]:
        with open_file(self.path) as file:
            stored = os.fstat(file.fileno()).st_size
            try:
                table = pa.parquet.ParquetFile(
                    file,
                    metadata=metadata,
                    pre_buffer=False,
                    buffer_size=1 << 20,
                    page_checksum_verification=True,
                )
            except (pa.ArrowException, ValueError, OSError) as error:
                raise InputError(
                    f"is not a Parquet file: {first_line(error)}", file=self.path
                ) from None
            check_inflation(self.path, stored, _ROW_BYTES * table.metadata.num_rows)
            yield table

    def batches(self, kinds: dict[str, str], over: Over = map) -> Iterator[Batch]:
        first = 0
        with closing(self._columns(kinds)) as read:
            while True:
                try:
                    columns = next(read, None)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise InputError(f"is damaged: {first_line(error)}", file=self.path) from None
                if columns is None:
                    break

                def place(k: int, first: int = first) -> str:
                    return f"row {first + k}"

                number = len(next(iter(columns.values())))
                out = Batch(self.path, {}, number, place)
                for name, kind in kinds.items():
                    out.columns[name] = self._cast(columns[name], kind, name)
                yield out
                first += number
        if first != self.num_rows:
            text = f"is damaged or was replaced while it was read: {self.num_rows} rows announced"
            raise InputError(text, file=self.path, value=first)

    def _columns(self, kinds: dict[str, str]) -> Generator[dict[str, pa.Array], None, None]:
        """Yield some rows of all columns at a time; two threads each decode half of the columns.

        Raises:
            ValueError: the columns have different lengths.
        """
        size = max(64, min(_BATCH_ROWS, _BATCH_BYTES // (8 * max(1, len(kinds)))))
        if LIST in kinds.values():
            size = 1 << 10
        names = list(kinds)
        halves = [names]
        if self.num_rows is not None and self.num_rows > size and len(names) > 1:
            halves = [names[: len(names) // 2], names[len(names) // 2 :]]
        with ExitStack() as stack:
            parts, metadata = [], None
            for half in halves:
                table = stack.enter_context(self._open(metadata))
                metadata = table.metadata
                made = table.iter_batches(batch_size=size, columns=half, use_threads=False)
                parts.append(stack.enter_context(closing(ahead(made, _AHEAD))))
            # Arrow's batches are cut like arrays.
            for rows in cast(Iterator[tuple[Any, ...]], together(*parts)):
                yield {
                    name: batch.column(name)
                    for half, batch in zip(halves, rows, strict=True)
                    for name in half
                }

    def _cast(self, array: pa.Array, kind: str, name: str) -> pa.Array:
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        found = kind_of(array.type)
        if kind == INTEGER and pa.types.is_decimal(array.type):
            found, array = INTEGER, self._whole(array, name)
        if found in (INTEGER, NUMBER) and kind in (INTEGER, NUMBER):
            array = cells.without(array, self._missing)
        if kind == INTEGER and found in (INTEGER, NUMBER):
            return array  # the caller checks that they are integers
        if pa.types.is_nested(array.type) and found != LIST:
            wanted = "numbers, texts or lists of numbers: store its parts as columns of their own"
            raise self._unfit(array, name, wanted)
        if found == LIST and kind_of(array.type.value_type) not in (INTEGER, NUMBER, BOOLEAN):
            raise self._unfit(array, name, "lists of numbers")
        if (kind == LIST and found != LIST) or (found == LIST and kind != LIST):
            raise self._unfit(array, name, "lists of numbers" if kind == LIST else kind)
        if kind in (NUMBER, INTEGER) and found in (TEXT, TIME):
            raise self._unfit(array, name, "numbers")
        if kind == NUMBER and found == BOOLEAN:
            array = array.cast(pa.int8())
        if kind == TIME and found in (INTEGER, NUMBER):
            kind = NUMBER
        target = pa.large_list(pa.float64()) if kind == LIST else ARROW_TYPES[kind]
        try:
            if kind == TIME and found == TEXT:
                return cells.times(array)
            array = array.cast(target, safe=kind != NUMBER)
            return cells.known(array, self._missing) if kind == TEXT and self._missing else array
        except pa.ArrowException as error:
            raise InputError(
                f"can't be read as {kind}: {first_line(error)}", file=self.path, dataset=name
            ) from None

    def _whole(self, array: pa.Array, name: str) -> pa.Array:
        try:
            return array.cast(pa.int64())
        except pa.ArrowException:
            raise self._unfit(array, name, "whole numbers below 2^63") from None

    def _unfit(self, array: pa.Array, name: str, wanted: str) -> InputError:
        return InputError(
            f"must hold {wanted}", file=self.path, dataset=name, value=str(array.type)
        )


def _folder_keys(file: Path) -> list[str]:
    """Return the columns that Hive and Spark put into folder names: year=2020/part-0.parquet."""
    return [part.partition("=")[0] for part in file.parts[:-1] if "=" in part]
