"""Quoted values of text tables that continue on the next line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpcgnn.storage.importers.text import LONGEST_LINE, TextBlock


def whole_values(found: Iterator[TextBlock]) -> Iterator[TextBlock]:
    """Yield the same lines in blocks none of which ends within a quoted value.

    With stray quotes, a block grows no longer than a line may be.
    """
    held: TextBlock | None = None
    for block in found:
        if held is not None:
            block = TextBlock(block.file, held.first, held.text + block.text)
        odd = block.text.count(b'"') % 2 == 1
        held = block if odd and len(block.text) <= LONGEST_LINE else None
        if held is None:
            yield block
    if held is not None:
        yield held


def masked(text: bytes, delimiter: str) -> bytes:
    """Return the text, of the same length, with NUL for the newlines in quoted values."""
    if b'"' not in text:
        return text
    return _value(delimiter).sub(lambda found: found[0].replace(b"\n", b"\0"), text)


def lines_of(text: bytes, delimiter: str) -> Iterator[tuple[int, bytes]]:
    """Yield each row of a table with the number of the line, from 0, in which it begins."""
    number = start = 0
    for row in masked(text, delimiter).split(b"\n"):
        yield number, text[start : start + len(row)]
        number += row.count(b"\0") + 1
        start += len(row) + 1


def rows_of(text: bytes, delimiter: str) -> int | None:
    """Return the number of non-empty rows, or None if a quoted value is not closed."""
    bare = _value(delimiter).sub(b"x", text)
    if re.search(rb'(?m)(^|%b)"' % re.escape(delimiter.encode()), bare):
        return None
    return sum(1 for _ in re.finditer(rb"[^\n]+", bare))


def _value(delimiter: str) -> re.Pattern[bytes]:
    """Return a pattern for a quoted value, from where one may begin to where one may end."""
    mark = re.escape(delimiter.encode())
    return re.compile(rb'(?m)(?:^|(?<=%b))"(?:[^"]|"")*"(?=%b|$)' % (mark, mark))
