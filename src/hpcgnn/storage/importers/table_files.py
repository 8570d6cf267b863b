"""Tables with named columns, in CSV, TSV or Parquet, read batch by batch.

pyarrow parses CSV a few MiB at a time, so that memory is bounded and each error names a line.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import cells
from hpcgnn.storage.importers.ahead import ahead
from hpcgnn.storage.importers.cells import BOOLEAN, INTEGER, LIST, NUMBER, TEXT, TIME
from hpcgnn.storage.importers.opening import check_inflation, open_file
from hpcgnn.storage.importers.quoted import lines_of, masked, rows_of, whole_values
from hpcgnn.storage.importers.source import Over
from hpcgnn.storage.importers.table_options import TextForm
from hpcgnn.storage.importers.text import (
    WIDEST,
    TextBlock,
    beside,
    blocks,
    is_number,
    may_be_padded,
)

_TYPES = {INTEGER: pa.int64(), NUMBER: pa.float64(), TEXT: pa.string(), TIME: cells.NANOSECONDS}
_READ_AS = _TYPES | {LIST: pa.string(), TIME: pa.string()}  # for text files
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1 << 16
_ROW_BYTES = 16  # bytes per row of an unpacked Parquet file, as the inflation check assumes
_NAME_LINES = 64  # lines that the names of columns may take


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

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with open_file(self.path) as file:
            stored = os.fstat(file.fileno()).st_size
            try:
                table = pa.parquet.ParquetFile(
                    file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
                )
            except (pa.ArrowException, ValueError, OSError) as error:
                raise InputError(
                    f"is not a Parquet file: {first_line(error)}", file=self.path
                ) from None
            check_inflation(self.path, stored, _ROW_BYTES * table.metadata.num_rows)
            yield table

    def batches(self, kinds: dict[str, str], over: Over = map) -> Iterator[Batch]:
        first = 0
        size = max(64, min(_BATCH_ROWS, _BATCH_BYTES // (8 * max(1, len(kinds)))))
        if LIST in kinds.values():
            size = 1 << 10
        with ExitStack() as stack:
            table = stack.enter_context(self._open())
            made = table.iter_batches(batch_size=size, columns=list(kinds), use_threads=False)
            read = stack.enter_context(closing(ahead(made)))
            while True:
                try:
                    batch = next(read, None)
                except (pa.ArrowException, OSError) as error:
                    raise InputError(f"is damaged: {first_line(error)}", file=self.path) from None
                if batch is None:
                    return

                def place(k: int, first: int = first) -> str:
                    return f"row {first + k}"

                out = Batch(self.path, {}, batch.num_rows, place)
                for name, kind in kinds.items():
                    out.columns[name] = self._cast(batch.column(name), kind, name)
                yield out
                first += batch.num_rows

    def _cast(self, array: pa.Array, kind: str, name: str) -> pa.Array:
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        found = kind_of(array.type)
        if kind == INTEGER and pa.types.is_decimal(array.type):
            found, array = INTEGER, self._whole(array, name)
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
        target = pa.large_list(pa.float64()) if kind == LIST else _TYPES[kind]
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


def _folder_keys(file: Path) -> list[str]:
    """Return the columns that Hive and Spark put into folder names: year=2020/part-0.parquet."""
    return [part.partition("=")[0] for part in file.parts[:-1] if "=" in part]


def first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


class TextTable:
    """A text table, compressed or not, whose first line may name the columns."""

    def __init__(self, path: Path, form: TextForm) -> None:
        self.path = path
        self._form = form
        block, number, line = self._first_line()
        given = form.delimiter if form.delimiter and form.delimiter.encode() in line else None
        self._delimiter = given or cells.delimiter_of(line)  # tables may differ in it
        if self._delimiter == " " and b"\t" in line:
            self._delimiter = "\t"
        # With spaces at delimiters, as in `a, b`, those around texts are not part of them.
        mark = self._delimiter.encode()
        self._spaced = mark.strip() != b"" and (mark + b" " in line or b" " + mark in line)
        fields = [f.replace("\n", " ").strip(" ") for f in self._split(block, number, line)]
        header = form.header
        if header is None:
            header = not any(is_number(field) for field in fields)
        self._first = number + 1 + line.count(b"\n") if header else number
        self.names = fields if header else [str(k + 1) for k in range(len(fields))]
        if len(fields) > WIDEST:
            raise block.error(number, f"has more than {WIDEST} columns")
        self.with_commas: set[str] = set()  # columns that may hold numbers such as 0,5 or 1,000
        self.kinds = dict.fromkeys(self.names, TEXT) | self._look()
        self.num_rows: int | None = None

    def _blocks(self) -> Iterator[TextBlock]:
        yield from whole_values(self._without_comments())

    def _without_comments(self) -> Iterator[TextBlock]:
        comment = self._form.comment
        for block in blocks(self.path):
            if comment is not None and comment.encode() in block.text:
                # An empty line is left, so that line numbers stay right.
                pattern = rb"(?m)^" + re.escape(comment.encode()) + rb"[^\n]*"
                block = TextBlock(block.file, block.first, re.sub(pattern, b"", block.text))
            yield block

    def _first_line(self) -> tuple[TextBlock, int, bytes]:
        barren = 0
        for block in self._blocks():
            for offset, line in enumerate(block.text.split(b"\n")):
                number = block.first + offset
                if number <= self._form.skip_lines or not line.strip():
                    continue
                if line[:1] not in (b"#", b"%"):
                    return block, number, _whole_line(block.text, offset, line)
                following = block.text.split(b"\n", offset + 1)[-1]
                if self._form.header and not following.strip():
                    break
            barren += len(block.text)
            block.check_barren(barren)
        raise InputError("holds no table: it is empty", file=self.path)

    def _split(self, block: TextBlock, number: int, line: bytes) -> list[str]:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise block.error(number, f"is not UTF-8: {_remedy(line)}", line[:40]) from None
        try:
            return next(csv.reader([text], delimiter=self._delimiter, skipinitialspace=True), [])
        except csv.Error as error:
            raise block.error(number, f"is not a row of a table: {error}", line) from None

    def _look(self) -> dict[str, str]:
        """Return the kinds of the columns, judged by the first block of rows."""
        for block in self._rows():
            text = block.text
            text = text[: masked(text, self._delimiter).rfind(b"\n", 0, 1 << 20) + 1] or text
            try:
                found = self._parse(
                    text, {name: None for name in self.names if name in self._unique()}
                )
            except pa.ArrowException:
                return {}
            kinds = {}
            for name, array in found.items():
                kinds[name] = NUMBER if pa.types.is_null(array.type) else kind_of(array.type)
                if pa.types.is_string(array.type):
                    if self._form.decimal is None and cells.have_commas(array):
                        self.with_commas.add(name)
                    elif cells.are_lists(array):
                        kinds[name] = LIST
                if kinds[name] == INTEGER and self._is_hexadecimal(name, text):
                    kinds[name] = TEXT
            return kinds
        return {}

    def is_canonical(self, name: str) -> bool:
        """Return whether integers at the start of the column have no leading zeros or plus."""
        place = self.names.index(name)
        for block in self._rows():
            for _, line in islice(lines_of(block.text, self._delimiter), 1000):
                fields = line.split(self._delimiter.encode())
                if len(fields) > place:
                    text = fields[place].strip(b' "\r')
                    if text[:1] in (b"0", b"+") and len(text) > 1:
                        return False
            return True
        return True

    def _unique(self) -> set[str]:
        return {name for name in self.names if self.names.count(name) == 1}

    def _rows(self) -> Iterator[TextBlock]:
        """Yield the lines after the header."""
        for block in self._blocks():
            skipped = self._first - block.first
            if skipped > 0:
                parts = block.text.split(b"\n", skipped)
                if len(parts) <= skipped:
                    continue
                block = TextBlock(block.file, self._first, parts[-1])
            if block.text.strip():
                yield block

    def batches(self, kinds: dict[str, str], over: Over = map) -> Iterator[Batch]:
        for block, columns in beside(partial(self._columns, kinds=kinds), self._rows(), over):
            rows = len(next(iter(columns.values()))) if columns else 0

            def place(k: int, block: TextBlock = block) -> str:
                return f"line {self._line_of(block, k)}"

            yield Batch(self.path, columns, rows, place)

    def _columns(self, block: TextBlock, kinds: dict[str, str]) -> dict[str, pa.Array]:
        try:
            return self._parse(block.text, dict(kinds))
        except (pa.ArrowException, UnicodeDecodeError) as error:
            self._diagnose(block, kinds)
            raise block.error(block.first, f"can't be read: {first_line(error)}") from None

    def _parse(self, text: bytes, kinds: dict[str, str | None]) -> dict[str, pa.Array]:
        places = {name: str(self.names.index(name)) for name in kinds}
        types = {places[name]: _READ_AS[kind] for name, kind in kinds.items() if kind is not None}
        for name, kind in kinds.items():
            if kind == INTEGER and self.kinds[name] == NUMBER:  # such as 1.0: the caller checks
                types[places[name]] = _READ_AS[NUMBER]
        if self._delimiter == " ":
            text = cells.with_single_spaces(text)
        table = pa.csv.read_csv(
            pa.BufferReader(text),
            read_options=pa.csv.ReadOptions(
                use_threads=False,
                block_size=len(text) + 1,
                column_names=[str(k) for k in range(len(self.names))],
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True, ignore_empty_lines=True
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                include_columns=list(places.values()),
                null_values=[*cells.MISSING, *self._form.missing],
                decimal_point=self._form.decimal or ".",
                true_values=[],
                false_values=[],
                strings_can_be_null=False,
            ),
        )
        if b'"' in text:
            self._check_rows(text, table.num_rows)
        out = {}
        for name, place in places.items():
            array = table.column(place).combine_chunks()
            if isinstance(array, pa.ChunkedArray):
                array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
            if pa.types.is_string(array.type):
                array = cells.trimmed(array) if self._spaced else array
                array = cells.known(array, self._form.missing)
            if kinds[name] == LIST:
                array = cells.lists(array)
            if kinds[name] == TIME and pa.types.is_string(array.type):
                array = cells.times(array)
            if kinds[name] == INTEGER and self._is_hexadecimal(name, text):
                raise pa.ArrowInvalid("a number is hexadecimal")
            out[name] = array
        self._refuse_padded(text, [name for name, kind in kinds.items() if kind == INTEGER])
        return out

    def _refuse_padded(self, text: bytes, names: list[str]) -> None:
        """Refuse integers that begin with 0: 007 would become 7, which may be another id."""
        if names and may_be_padded(text):
            for array in self._parse(text, dict.fromkeys(names, TEXT)).values():
                if pc.any(pc.match_substring_regex(array, r"^\s*\+?0\d")).as_py():
                    raise pa.ArrowInvalid("a number begins with 0")

    def _check_rows(self, text: bytes, number: int) -> None:
        """Check the number of rows: in pyarrow, an unclosed quote swallows what follows."""
        lines = text.count(b"\n") + (text[-1:] != b"\n")
        if lines != number and rows_of(text, self._delimiter) != number:
            raise pa.ArrowInvalid("a quote is not closed")

    def _line_of(self, block: TextBlock, row: int) -> int:
        """Return the number of the line in which the block's row `row` begins."""
        rows = lines_of(block.text, self._delimiter)
        filled = (offset for offset, line in rows if line.strip(b"\r"))
        return block.first + next(islice(filled, row, None), 0)

    def _is_hexadecimal(self, name: str, text: bytes) -> bool:
        """Return whether a number such as 0x10 occurs, which only pyarrow reads as an integer."""
        if b"0x" not in text and b"0X" not in text:
            return False
        place = self.names.index(name)
        mark = self._delimiter.encode()
        rows = (line.split(mark) for _, line in lines_of(text, self._delimiter))
        return any(len(row) > place and b"x" in row[place].lower() for row in rows)

    def _diagnose(self, block: TextBlock, kinds: dict[str, str]) -> None:
        """Raise an error that names the malformed line, if one is found."""
        for offset, line in lines_of(block.text, self._delimiter):
            number = block.first + offset
            if not line.strip(b"\r "):
                continue
            if line.count(b'"') % 2:
                text = (
                    "has a quote that is not closed: a quoted value over several lines must end "
                    "with a quote before a delimiter or the end of a line"
                )
                raise block.error(number, text, line)
            if self._delimiter == " ":
                line = re.sub(rb"[ \t]+", b" ", line).strip()
            fields = self._split(block, number, line)
            if len(fields) != len(self.names):
                text = f"has {len(fields)} columns, but the first line has {len(self.names)}"
                if line[:1] in (b"#", b"%"):
                    text += f": --comment {line[:1].decode()!r} skips lines that begin with it"
                elif fields[-1] == "" and len(fields) == len(self.names) + 1:
                    text += ": remove the delimiter at the end"
                raise block.error(number, text, line)
            for name, kind in kinds.items():
                value = fields[self.names.index(name)].strip()
                if value not in self._form.missing:
                    cells.check_field(block, number, name, kind, value, self._form.decimal)


def _remedy(line: bytes) -> str:
    if line[:4] == b"PAR1":
        return "it is a Parquet file, whose name must end in .parquet"
    if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "convert it with iconv -f UTF-16 -t UTF-8"
    return "convert it with iconv -f CP1252 -t UTF-8, or from its own encoding"


def _whole_line(text: bytes, offset: int, line: bytes) -> bytes:
    """Return the row of names that begins in this line; quoted names may span lines."""
    for _ in range(_NAME_LINES):
        if line.count(b'"') % 2 == 0:
            return line
        line = b"\n".join(text.split(b"\n")[offset : offset + line.count(b"\n") + 2])
    return line


def to_numpy(array: pa.Array) -> np.ndarray:
    """Return an array without nulls as NumPy array."""
    return array.to_numpy(zero_copy_only=False)
