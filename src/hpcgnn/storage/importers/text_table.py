"""Tables in text files with delimiters, compressed or not.

pyarrow parses them a few MiB at a time, so that memory is bounded and each error names a line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from hpcgnn.errors import InputError, counted
from hpcgnn.storage.importers import cells
from hpcgnn.storage.importers.cells import INTEGER, LIST, NUMBER, TEXT, TIME
from hpcgnn.storage.importers.quoted import lines_of, masked, rows_of, whole_values
from hpcgnn.storage.importers.source import Over
from hpcgnn.storage.importers.table_batches import ARROW_TYPES, Batch, first_line, kind_of
from hpcgnn.storage.importers.table_options import TextForm
from hpcgnn.storage.importers.text import (
    WIDEST,
    TextBlock,
    beside,
    blocks,
    is_number,
    may_be_padded,
)

_READ_AS = ARROW_TYPES | {LIST: pa.string(), TIME: pa.string()}  # for text files
_NAME_LINES = 64  # lines that the names of columns may take


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
                found, first = counted(len(fields), "column"), len(self.names)
                text = f"has {found}, but the first line has {first}"
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
