"""Numbers in text files, parsed in blocks of whole lines by NumPy's C reader.

Only when a block does not parse is it gone through line by line, to name the line at fault.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.reading import open_binary
from hpcgnn.storage.importers.source import PIECE_BYTES

LONGEST_LINE = 16 << 20
_INTEGER = re.compile(rb"[+-]?\d+")
_COMMENTS = (b"#", b"%")
_INT64 = np.iinfo(np.int64)


@dataclass
class Block:
    """Whole lines of a file; `first` is the number of the first one, counted from 1."""

    file: Path
    first: int
    text: bytes

    def error(self, line: int, message: str, value: object = None) -> InputError:
        if isinstance(value, bytes):
            value = value[:60].decode("latin1")
        return InputError(message, file=self.file, dataset=f"line {line}", value=value)


def blocks(path: Path, *, longest: int = LONGEST_LINE) -> Iterator[Block]:
    """The lines of a text file, gzip or not, in blocks of a few MiB.

    Raises:
        InputError: unreadable or damaged, or a line longer than `longest` bytes.
    """
    with open_binary(path) as file:
        yield from blocks_of(file, path, 1, longest=longest)


def blocks_of(
    file: BinaryIO, path: Path, first: int, *, longest: int = LONGEST_LINE
) -> Iterator[Block]:
    """The rest of an open file, whose next line is number `first`."""
    held: list[bytes] = []
    held_bytes = 0
    while data := file.read(PIECE_BYTES):
        if first == 1 and not held:
            data = data.removeprefix(b"\xef\xbb\xbf")
        cut = data.rfind(b"\n") + 1
        if cut == 0:
            held.append(data)
            held_bytes += len(data)
            if held_bytes > longest:
                raise InputError(
                    f"is longer than {longest} bytes: this is no such file, or raise --memory",
                    file=path,
                    dataset=f"line {first}",
                )
            continue
        text = b"".join([*held, data[:cut]])
        yield Block(path, first, text)
        first += text.count(b"\n")
        held, held_bytes = [data[cut:]], len(data) - cut
    if any(held):
        yield Block(path, first, b"".join(held))


def skip_lines(source: Iterator[Block], count: int) -> Iterator[Block]:
    """The blocks without their first `count` lines."""
    for block in source:
        while count and block.text:
            end = block.text.find(b"\n") + 1 or len(block.text)
            block = Block(block.file, block.first + 1, block.text[end:])
            count -= 1
        if block.text:
            yield block


def data_lines(
    block: Block, comments: tuple[bytes, ...] = _COMMENTS
) -> Iterator[tuple[int, bytes]]:
    """Number and text of each line that holds anything but a comment."""
    for offset, line in enumerate(block.text.split(b"\n")):
        for mark in comments:
            line = line.split(mark, 1)[0]
        if line.strip():
            yield block.first + offset, line


def guess_delimiter(line: bytes) -> str | None:
    """`,` or `;` where the line has one, else None for white space."""
    return next((mark for mark in (",", ";") if mark.encode() in line), None)


class Table:
    """Text whose lines all have the same columns.

    Args:
        fields: name and type (int64 or float64) of the columns to take.
        columns: their places from 0; None: they are all there is, in this order.
        delimiter: None for white space.
    """

    def __init__(
        self,
        fields: list[tuple[str, type]],
        *,
        columns: tuple[int, ...] | None = None,
        delimiter: str | None = None,
        comments: tuple[bytes, ...] = _COMMENTS,
    ) -> None:
        self.fields = fields
        self.dtype = np.dtype(fields)
        self.columns = columns
        self.delimiter = delimiter
        self.comments = comments

    def parse(self, block: Block) -> np.ndarray:
        """A structured array, one record per line that holds data.

        Raises:
            InputError: names the line: a field too many or too few, no number, beyond 64 bits.
        """
        kinds = {kind for _, kind in self.fields}
        uniform = kinds.pop() if len(kinds) == 1 else None  # a plain matrix parses faster
        present = [mark.decode() for mark in self.comments if mark in block.text]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "input contained no data"
                values = np.loadtxt(
                    io.BytesIO(block.text),
                    dtype=uniform or self.dtype,
                    comments=present[0] if len(present) == 1 else present or None,
                    delimiter=self.delimiter,
                    usecols=self.columns,
                    ndmin=2 if uniform else 1,
                    encoding="latin1",
                )
            if uniform is None or values.size == 0:
                return values.reshape(-1).astype(self.dtype, copy=False)
            if values.shape[1] != len(self.fields):
                raise ValueError(f"{values.shape[1]} columns")
            return np.ascontiguousarray(values).view(self.dtype)[:, 0]
        except ValueError as error:
            self._diagnose(block)
            raise block.error(block.first, f"can't be read: {error}") from None

    def _diagnose(self, block: Block) -> None:
        width = len(self.fields)
        places = self.columns or tuple(range(width))
        delimiter = self.delimiter.encode() if self.delimiter else None
        for number, line in data_lines(block, self.comments):
            found = line.split(delimiter)
            if len(found) <= max(places) or (self.columns is None and len(found) != width):
                wanted = width if self.columns is None else max(places) + 1
                raise block.error(number, f"has {len(found)} columns, not {wanted}", line)
            for place, (_, kind) in zip(places, self.fields, strict=True):
                check_number(block, number, found[place].strip(), kind)

    def place(self, block: Block, index: int) -> str:
        """Where record `index` of the block stands."""
        for row, (number, _) in enumerate(data_lines(block, self.comments)):
            if row == index:
                return f"line {number}"
        return f"line {block.first}"


def check_number(block: Block, line: int, text: bytes, kind: type) -> None:
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


def matrix_rows(path: Path, *, delimiter: str | None = ",") -> Iterator[np.ndarray]:
    """float64 [n, F] pieces of a text table of numbers, `nan` for missing ones.

    Raises:
        InputError: unreadable, or a line with another number of columns than the first.
    """
    table: Table | None = None
    width = 0
    for block in blocks(path):
        if table is None:
            first = next(data_lines(block), None)
            if first is None:
                continue
            width = len(first[1].split(delimiter.encode() if delimiter else None))
            table = Table([(f"{k}", np.float64) for k in range(width)], delimiter=delimiter)
        rows = table.parse(block)
        yield rows.view(np.float64).reshape(-1, width)
