"""Text files: blocks of whole lines, and tables of numbers parsed from them."""

from __future__ import annotations

import codecs
import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.opening import open_binary
from hpcgnn.storage.importers.source import PIECE_BYTES, Over

LONGEST_LINE = 16 << 20
WIDEST = 1 << 16  # columns of a table
_BARREN = 4 << 20  # bytes without a number after which a file is refused
_INTEGER = re.compile(rb"[+-]?\d+")
PADDED = re.compile(rb"\+?0\d")
_BEFORE = b' \t\n,;|"+'  # characters that may precede a number
_COMMENTS = (b"#", b"%")
_SHOWN = 1 << 16  # bytes of a line that may be shown
_INT64 = np.iinfo(np.int64)
_SPACES = bytes(32 if chr(code).isspace() and code != 10 else code for code in range(256))


@dataclass
class TextBlock:
    """Whole lines of a file; `first` is the number of the first line, counted from 1."""

    file: Path
    first: int
    text: bytes

    def error(self, line: int, message: str, value: object = None) -> InputError:
        if isinstance(value, bytes):
            value = readable(value)[:60]
        return InputError(message, file=self.file, dataset=f"line {line}", value=value)

    def check_barren(self, nbytes: int) -> None:
        """Refuse a file after too many bytes without data, as it may never end.

        `nbytes` counts them up to this block, which is included.
        """
        if nbytes > _BARREN:
            raise self.error(
                self.first, f"{nbytes >> 20} MiB hold no data: this is not a data file"
            )


def readable(raw: bytes) -> str:
    """Return the beginning of `raw` as UTF-8, or else as Latin-1, for messages and names."""
    front = raw[:_SHOWN]
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(front, final=front == raw)
    except UnicodeDecodeError:
        return front.decode("latin1")


def blocks(path: Path, *, longest: int = LONGEST_LINE) -> Iterator[TextBlock]:
    """Yield the lines of a text file, compressed or not, in blocks of a few MiB.

    Raises:
        InputError: the file can't be read or is damaged, or a line exceeds `longest` bytes.
    """
    with open_binary(path) as file:
        yield from blocks_of(file, path, 1, longest=longest)


def blocks_of(
    file: BinaryIO, path: Path, first: int, *, longest: int = LONGEST_LINE
) -> Iterator[TextBlock]:
    """Yield the rest of an open file, whose next line is number `first`, in whole lines."""
    held: list[bytes] = []
    held_bytes = blank = 0
    for data in _universal_newlines(file):
        if first == 1 and not held:
            data = data.removeprefix(b"\xef\xbb\xbf")
        cut = data.rfind(b"\n") + 1
        if cut == 0:
            held.append(data)
            held_bytes += len(data)
            if held_bytes > longest:
                raise InputError(
                    f"is longer than {longest} bytes: this is not a data file, or --memory is too "
                    "small",
                    file=path,
                    dataset=f"line {first}",
                )
            continue
        block = TextBlock(path, first, b"".join([*held, data[:cut]]))
        blank = 0 if block.text.strip() else blank + len(block.text)
        block.check_barren(blank)
        yield block
        first += block.text.count(b"\n")
        held, held_bytes = [data[cut:]], len(data) - cut
    if any(held):
        yield TextBlock(path, first, b"".join(held))


def _universal_newlines(file: BinaryIO) -> Iterator[bytes]:
    """Yield pieces of the file with the line ends of any system replaced by newlines."""
    last = b""
    while data := file.read(PIECE_BYTES):
        data = last + data
        last = b""
        if b"\r" in data:
            if data.endswith(b"\r"):  # its newline may be in the next piece
                data, last = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if data:
            yield data
    if last:
        yield b"\n"


def skip_lines(source: Iterator[TextBlock], count: int) -> Iterator[TextBlock]:
    """Yield the blocks without their first `count` lines."""
    for block in source:
        end = skipped = 0
        while skipped < count and end < len(block.text):
            end = block.text.find(b"\n", end) + 1 or len(block.text)
            skipped += 1
        if skipped:
            block = TextBlock(block.file, block.first + skipped, block.text[end:])
            count -= skipped
        if block.text:
            yield block


def data_lines(
    block: TextBlock, comments: tuple[bytes, ...] = _COMMENTS
) -> Iterator[tuple[int, bytes]]:
    """Yield number and text, without comments, of each line that holds data."""
    if not block.text.strip():
        return
    for offset, line in enumerate(block.text.split(b"\n")):
        for mark in comments:
            line = line.split(mark, 1)[0]
        if line.strip():
            yield block.first + offset, line


def guess_delimiter(line: bytes) -> str | None:
    """Return `,` or `;` if the line contains one, else None for white space."""
    return next((mark for mark in (",", ";") if mark.encode() in line), None)


def fields_of(line: bytes, delimiter: str | None) -> list[bytes]:
    """Return the fields of a line without white space and quotes; quotes protect delimiters."""
    if delimiter and b'"' in line:
        with suppress(csv.Error):
            text = [line.decode("latin1")]
            found = next(csv.reader(text, delimiter=delimiter, skipinitialspace=True))
            return [word.strip().encode("latin1") for word in found]
    words = line.split(delimiter.encode() if delimiter else None)
    return [word.strip().strip(b'"') for word in words]


def beside(
    function: Callable[[TextBlock], Any], source: Iterable[TextBlock], over: Over
) -> Iterator[tuple[TextBlock, Any]]:
    """Yield each block with the function's result for it; `over` may be some blocks ahead."""
    ahead: deque[TextBlock] = deque()

    def noted() -> Iterator[TextBlock]:
        for block in source:
            ahead.append(block)
            yield block

    for made in over(function, noted()):
        yield ahead.popleft(), made


def may_be_padded(text: bytes) -> bool:
    """Return whether the text may hold a number with leading zeros, such as 007."""
    found = np.frombuffer(text, np.uint8)
    zeros = np.flatnonzero(found[:-1] == ord("0"))
    after = found[zeros + 1]
    zeros = zeros[(after >= ord("0")) & (after <= ord("9"))]
    if not zeros.shape[0]:
        return False
    before = found[zeros - 1]
    begins = np.isin(before, np.frombuffer(_BEFORE, np.uint8)) | (zeros == 0)
    return bool(begins.any())


class Table:
    """A text table of numbers, in which all lines have the same columns.

    Args:
        fields: name and type (int64 or float64) of the columns to read.
        columns: their positions from 0; None if the lines have exactly these columns.
        width: the number of columns of each line, if `columns` are chosen.
        delimiter: None for white space.
        comments: marks that begin a comment.
        padded: integers may begin with 0; otherwise 007 is refused, as 7 may be another id.
    """

    def __init__(
        self,
        fields: list[tuple[str, type]],
        *,
        columns: tuple[int, ...] | None = None,
        width: int | None = None,
        delimiter: str | None = None,
        comments: tuple[bytes, ...] = _COMMENTS,
        padded: bool = True,
    ) -> None:
        self.padded = padded
        self.fields = fields
        self.dtype = np.dtype(fields)
        self.columns = columns
        self.width = len(fields) if columns is None or width is None else width
        self._barren = 0
        self.delimiter = delimiter
        self.comments = comments

    def parse(self, block: TextBlock) -> np.ndarray:
        """Return a structured array with one record per line that holds data.

        Raises:
            InputError: a line has too many or too few fields, or a field is no number or exceeds 64
                bits; the error names the line.
        """
        _, records = next(self.parse_all([block], map))
        return records

    def parse_all(
        self, source: Iterable[TextBlock], over: Over
    ) -> Iterator[tuple[TextBlock, np.ndarray]]:
        """Yield each block with the result of `parse`; `over` applies the parser."""
        for block, records in beside(self.records, source, over):
            self._barren = 0 if records.shape[0] else self._barren + len(block.text)
            block.check_barren(self._barren)
            yield block, records

    def records(self, block: TextBlock) -> np.ndarray:
        """Return the records of a block as `parse` does, whatever the blocks before it hold."""
        from pyarrow import ArrowInvalid

        text = block.text
        for mark in self.comments:
            if mark in text:
                text = re.sub(re.escape(mark) + rb"[^\n]*", b"", text)
        if not text.strip():
            return np.empty(0, self.dtype)
        try:
            try:
                records = self._converted(text)
            except ArrowInvalid:
                records = self._converted(_normal(text, self.delimiter))
        except ArrowInvalid as error:
            self._diagnose(block)
            reason = " ".join(str(error).split())[:160]
            raise block.error(block.first, f"can't be read: {reason}") from None
        if b'"' in text and records.shape[0] != sum(1 for _ in data_lines(block, self.comments)):
            raise block.error(block.first, "quotes in this or a later line are not closed")
        if not self.padded and may_be_padded(text):
            self._refuse_padded(block)
        return records

    def _refuse_padded(self, block: TextBlock) -> None:
        places = self.columns or tuple(range(self.width))
        ids = [p for p, (_, k) in zip(places, self.fields, strict=True) if k is np.int64]
        for number, line in data_lines(block, self.comments):
            found = fields_of(line, self.delimiter)
            for place in ids:
                if PADDED.match(found[place]):
                    columns = " --target ".join(str(k + 1) for k in (ids[0], ids[-1]))
                    text = (
                        f"begins with 0: --string-ids --source {columns} keeps 007 different from 7"
                    )
                    raise block.error(number, text, found[place])

    def _converted(self, text: bytes) -> np.ndarray:
        """Return the records that pyarrow parses from the text.

        Raises:
            pyarrow.ArrowInvalid: a field is not a number, a line has another width, or more than
                one space separates columns.
        """
        import pyarrow as pa
        import pyarrow.csv

        places = self.columns or tuple(range(self.width))
        types = {
            str(place): pa.int64() if kind is np.int64 else pa.float64()
            for place, (_, kind) in zip(places, self.fields, strict=True)
        }
        delimiter = self.delimiter or ("\t" if b"\t" in text and b" " not in text else " ")
        table = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=len(text) + 1,
                column_names=[str(k) for k in range(self.width)],
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[]
            ),
        )
        if b"0x" in text or b"0X" in text:
            raise pa.ArrowInvalid("a number is hexadecimal")
        out = np.empty(table.num_rows, self.dtype)
        for place, (name, _) in zip(places, self.fields, strict=True):
            out[name] = table.column(str(place)).to_numpy()
        return out

    def _diagnose(self, block: TextBlock) -> None:
        places = self.columns or tuple(range(self.width))
        for number, line in data_lines(block, self.comments):
            found = fields_of(line, self.delimiter)
            if len(found) != self.width:
                wanted = f", but the first line has {self.width}" if self.columns else ""
                wanted = wanted or f", not {self.width}"
                raise block.error(number, f"has {len(found)} columns{wanted}", line)
            for place, (_, kind) in zip(places, self.fields, strict=True):
                check_number(block, number, found[place], kind)

    def check_numbered(self, ids: np.ndarray, last: int, block: TextBlock, message: str) -> None:
        """Refuse, with `message`, records whose ids are outside 1 .. `last`; name the first."""
        bad = (ids < 1) | (ids > last)
        if bad.any():
            k = int(np.argmax(bad))
            raise InputError(
                f"{message} 1 .. {last}",
                file=block.file,
                dataset=self.place(block, k),
                value=int(ids[k]),
            )

    def place(self, block: TextBlock, index: int) -> str:
        """Return the place of record `index` of the block."""
        for row, (number, _) in enumerate(data_lines(block, self.comments)):
            if row == index:
                return f"line {number}"
        return f"line {block.first}"


def _normal(text: bytes, delimiter: str | None) -> bytes:
    """Return the same table without what pyarrow refuses: wide gaps, blank lines, plus signs."""
    text = text.translate(_SPACES)
    text = re.sub(rb"(?m)^ +| +$", b"", text)
    if delimiter is None:
        text = re.sub(rb" +", b" ", text)
    return re.sub(rb'(^|[\s,;"])\+(?=[0-9.])', rb"\1", text)


def check_number(block: TextBlock, line: int, text: bytes, kind: type) -> None:
    """Raise InputError naming the line unless `text` is a number of this kind."""
    if kind is np.int64:
        if not _INTEGER.fullmatch(text):
            raise block.error(line, "is not an integer", text)
        if not _INT64.min <= int(text[:30]) <= _INT64.max:
            raise block.error(line, "does not fit a signed 64-bit integer", text)
        return
    try:
        float(text if b"_" not in text else b"_")
    except ValueError:
        raise block.error(line, "is not a number", text) from None


def is_number(text: str) -> bool:
    """Return whether a text is a number for other programs too: ASCII digits, no underscores."""
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text


def matrix_rows(path: Path, *, delimiter: str | None = ",") -> Iterator[np.ndarray]:
    """Yield float64 [n, F] pieces of a text table of numbers, NaN for missing ones.

    Raises:
        InputError: the file can't be read, or a line has not as many columns as the first.
    """
    table: Table | None = None
    width = 0
    for block in blocks(path):
        if table is None:
            first = next(data_lines(block), None)
            if first is None:
                continue
            width = len(fields_of(first[1], delimiter))
            if width > WIDEST:
                raise block.error(first[0], f"has more than {WIDEST} columns")
            table = Table([(f"{k}", np.float64) for k in range(width)], delimiter=delimiter)
        rows = table.parse(block)
        yield rows.view(np.float64).reshape(-1, width)
