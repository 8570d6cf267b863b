"""Chosen columns of text files: by number, by the name in a header, or all there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.storage.importers.source import Options
from hpcgnn.storage.importers.text import (
    Block,
    Table,
    blocks,
    data_lines,
    guess_delimiter,
    skip_lines,
)


def records(
    path: Path, options: Options, fields: list[tuple[str, type]], needed: int
) -> Iterator[tuple[Table, Block, np.ndarray]]:
    """Blocks of a text file with their structured arrays.

    Args:
        fields: name and type of the columns; the first `needed` must be there, the others are
            taken when `options.columns` names them.

    Raises:
        InputError: names the line that is not as it should be.
    """
    table: Table | None = None
    for block in skip_lines(blocks(path), options.skip_lines):
        if table is None:
            line = next(data_lines(block), None)
            if line is None:
                continue
            table, block = _table(block, *line, options, fields, needed)
        yield table, block, table.parse(block)


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
    found = [word.strip() for word in line.split(delimiter.encode() if delimiter else None)]
    chosen = options.columns
    if not chosen:
        if len(found) != needed:
            numbers = ",".join(str(k + 1) for k in range(needed))
            raise block.error(
                number, f"has {len(found)} columns: choose with --columns, as in {numbers}", line
            )
        return Table(fields[:needed], delimiter=delimiter), block
    if not needed <= len(chosen) <= len(fields):
        names = ", ".join(name for name, _ in fields)
        raise block.error(number, f"--columns takes {needed} to {len(fields)}: {names}", chosen)
    if all(name.isdecimal() for name in chosen):
        places = tuple(int(name) - 1 for name in chosen)
        if not all(0 <= place < len(found) for place in places):
            raise block.error(number, f"has columns 1 to {len(found)}", chosen)
        return Table(fields[: len(chosen)], columns=places, delimiter=delimiter), block
    names_found = [word.strip(b'"').decode("latin1") for word in found]
    for name in chosen:
        if name not in names_found:
            raise block.error(number, f"has no column {name!r}", line)
    places = tuple(names_found.index(name) for name in chosen)
    rest = block.text.split(b"\n", number - block.first + 1)[-1]
    return (
        Table(fields[: len(chosen)], columns=places, delimiter=delimiter),
        Block(block.file, number + 1, rest),
    )
