"""Chosen columns of text files: by number, by the name in a header, or all there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcgnn.storage.importers.source import Options
from hpcgnn.storage.importers.text import (
    Block,
    Table,
    blocks,
    data_lines,
    fields_of,
    guess_delimiter,
    skip_lines,
)


def records(
    path: Path, options: Options, fields: list[tuple[str, type]], needed: int
) -> Iterator[tuple[Table, Block, np.ndarray]]:
    """Blocks of a text file with their structured arrays.

    Args:
        fields: name and type of the columns; the first `needed` must be there, the others are
            taken when `options.columns` names them. The first and the last needed one are nodes.

    Raises:
        InputError: names the line that is not as it should be, or may be no edge but sizes.
    """
    table: Table | None = None
    sizes: _SizeLine | None = None
    barren = 0
    for block in skip_lines(blocks(path), options.skip_lines or 0):
        if table is None:
            line = next(data_lines(block), None)
            if line is None:
                barren += len(block.text)
                block.check_barren(barren)
                continue
            table, block = _table(block, *line, options, fields, needed)
            if options.skip_lines is None:
                sizes = _size_line(block, table, *line)
        rows = table.parse(block)
        if sizes is not None:
            sizes.compare(rows[fields[0][0]], rows[fields[needed - 1][0]])
        yield table, block, rows
    if sizes is not None:
        sizes.check()


def _table(
    block: Block,
    number: int,
    line: bytes,
    options: Options,
    fields: list[tuple[str, type]],
    needed: int,
) -> tuple[Table, Block]:
    """How to read the columns, and the block without its header."""
    delimiter = guess_delimiter(line)
    found = fields_of(line, delimiter)
    chosen = options.columns
    if not chosen:
        if len(found) != needed:
            numbers = ",".join(str(k + 1) for k in range(needed))
            raise block.error(
                number,
                f"has {len(found)} columns: choose with --columns, as in {numbers}, or pass over"
                " lines that hold no edge with --skip-lines",
                line,
            )
        return Table(fields[:needed], delimiter=delimiter), block
    if not needed <= len(chosen) <= len(fields):
        names = ", ".join(name for name, _ in fields)
        raise block.error(number, f"--columns takes {needed} to {len(fields)}: {names}", chosen)
    if all(name.isdecimal() for name in chosen):
        places = tuple(int(name) - 1 for name in chosen)
        if not all(0 <= place < len(found) for place in places):
            raise block.error(number, f"has columns 1 to {len(found)}", chosen)
        rest = block
    else:
        places = _places(block, number, line, found, chosen)
        text = block.text.split(b"\n", number - block.first + 1)[number - block.first + 1 :]
        rest = Block(block.file, number + 1, b"".join(text))
    if len(set(places)) != len(places):
        raise block.error(number, "--columns names a column twice", chosen)
    table = Table(fields[: len(chosen)], columns=places, width=len(found), delimiter=delimiter)
    return table, rest


def _places(
    block: Block, number: int, line: bytes, found: list[bytes], chosen: tuple[str, ...]
) -> tuple[int, ...]:
    """Where the header has the chosen names."""
    names = [word.decode("latin1") for word in found]
    for name in chosen:
        if names.count(name) != 1:
            problem = "two columns" if name in names else "no column"
            raise block.error(number, f"has {problem} {name!r}", line)
    return tuple(names.index(name) for name in chosen)


@dataclass
class _SizeLine:
    """A first line that may hold the sizes of the graph: its nodes, ..., its edges."""

    block: Block
    number: int
    line: bytes
    nodes: int
    edges: int
    largest: int = -1
    count: int = -1  # of the lines after the first

    def compare(self, *ends: np.ndarray) -> None:
        """Some more lines' ids of nodes."""
        first = 1 if self.count < 0 < ends[0].shape[0] else 0
        self.count += ends[0].shape[0]
        for ids in ends:
            self.largest = max(self.largest, int(ids[first:].max(initial=-1)))

    def check(self) -> None:
        if self.count > 0 and self.count == self.edges and self.largest <= self.nodes:
            raise self.block.error(
                self.number,
                f"reads like the sizes of the graph, as {self.count} edges follow: say"
                f" --skip-lines {self.number} to pass over it, or --skip-lines 0 if it is an edge",
                self.line,
            )


def _size_line(block: Block, table: Table, number: int, line: bytes) -> _SizeLine | None:
    """None where the first line is a header or has no two or three natural numbers."""
    words = fields_of(line, table.delimiter)
    if block.first > number or not 2 <= len(words) <= 3:
        return None
    if not all(word.isdigit() and len(word) < 19 for word in words):
        return None
    return _SizeLine(block, number, line, nodes=int(words[0]), edges=int(words[-1]))
