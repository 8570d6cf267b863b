"""METIS .graph files, in which line k lists the neighbours of node k, counted from 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.pairs import BothEnds
from hpcgnn.storage.importers.source import EdgeChunk, ImportOptions, Source
from hpcgnn.storage.importers.text import TextBlock, blocks, check_number, skip_lines

_COMMENT = re.compile(rb"^%[^\n]*(?:\n|\Z)", re.MULTILINE)
_DIGITS = 18  # numbers with this many digits fit 64 bits


@dataclass(frozen=True)
class _Header:
    num_nodes: int
    num_edges: int
    skipped: int  # numbers before the neighbours: the node's size and weights
    weighted: bool
    keep_weights: bool = True


def read_metis(path: Path, options: ImportOptions) -> Source:
    """Return the graph of a METIS file; weights and sizes of nodes are ignored.

    Raises:
        InputError: a line is malformed, counts differ from the header's, or an edge is listed at
            one end only.
    """
    header, line = _read_header(path)
    if not options.weights:
        header = replace(header, keep_weights=False)

    def lines() -> Iterator[TextBlock]:
        return skip_lines(blocks(path, longest=options.limit // 4), line)

    return Source(
        path,
        _checked(path, lines, header),
        num_nodes=header.num_nodes,
        num_edges=2 * header.num_edges,
        notes=["sizes and weights of nodes are ignored"] if header.skipped else [],
    )


def _read_header(path: Path) -> tuple[_Header, int]:
    """Return the header and the number of its line."""
    barren = 0
    for block in blocks(path):
        for offset, line in enumerate(block.text.split(b"\n")):
            if line.strip() and not line.startswith(b"%"):
                number = block.first + offset
                return _parse_header(TextBlock(path, number, line), line), number
        barren += len(block.text)
        block.check_barren(barren)
    raise InputError("is empty", file=path)


def _parse_header(block: TextBlock, line: bytes) -> _Header:
    words = line.split()
    for word in words:
        check_number(block, block.first, word, np.int64)
    nodes, edges, kind, weights = (*(int(word) for word in words[:4]), *(0, 0, 0, 1)[len(words) :])
    flags = f"{kind:03d}"
    skipped = (flags[0] == "1") + (flags[1] == "1") * weights
    sane = nodes > 0 and edges >= 0 and 0 < weights < 1 << 16 and re.fullmatch("[01]{3}", flags)
    if not 2 <= len(words) <= 4 or not sane:
        raise block.error(
            block.first, "must be: nodes edges [format of 0 and 1 [weights per node]]", line
        )
    return _Header(nodes, edges, skipped, flags[2] == "1")


def _checked(
    path: Path, lines: Callable[[], Iterator[TextBlock]], header: _Header
) -> Iterator[EdgeChunk]:
    """Yield the edges, then check that each was listed at both ends."""
    both = BothEnds()
    for edges in _edges(path, lines(), header):
        both.add(edges)
        yield edges
    if not both.agree():
        node, other = both.find(_edges(path, lines(), header))
        raise InputError(
            f"node {node + 1} lists node {other + 1} more often, or with another weight, than node"
            f" {other + 1} lists node {node + 1}: edges must be listed at both ends",
            file=path,
        )


def _edges(path: Path, lines: Iterator[TextBlock], header: _Header) -> Iterator[EdgeChunk]:
    node = found = barren = 0
    for block in lines:
        numbers = _Numbers(block, header.num_nodes - node)
        edges = _neighbours(numbers, node, header)
        found += edges.source.shape[0]
        node += numbers.num_lines
        barren = 0 if numbers.num_lines else barren + len(block.text)
        block.check_barren(barren)
        yield edges
    if node < header.num_nodes:
        raise InputError(f"has lines for only {node} of {header.num_nodes} nodes", file=path)
    if found != 2 * header.num_edges:
        raise InputError(
            f"lists {found} neighbours, but its header announces {header.num_edges} edges, which"
            " must be listed at both ends",
            file=path,
        )


class _Numbers:
    """The numbers in a block: `values`, `line` (from 0, without comments), `place` in the line."""

    def __init__(self, block: TextBlock, lines_left: int) -> None:
        self.block = block
        text = _COMMENT.sub(b"", block.text) if b"%" in block.text else block.text
        if text and not text.endswith(b"\n"):
            text += b"\n"
        raw = np.frombuffer(text, np.uint8)
        digits = raw - np.uint8(48)
        is_digit = digits < 10
        line_ends = np.flatnonzero(raw == 10)
        good = is_digit | (raw == 10) | (raw == 32) | (raw == 9) | (raw == 13)
        if not good.all():
            wrong = int(np.argmin(good))
            raise self.error(
                int(np.searchsorted(line_ends, wrong)), "must hold non-negative integers"
            )
        bounds = np.flatnonzero(np.diff(is_digit.view(np.int8), prepend=0, append=0))
        starts, lengths = bounds[::2], bounds[1::2] - bounds[::2]
        self.line = np.searchsorted(line_ends, starts)
        self.values = self._integers(digits, starts, lengths)
        self.num_lines = line_ends.shape[0]
        if self.num_lines > lines_left:  # empty lines may follow the last node
            if self.line.shape[0] and self.line[-1] >= lines_left:
                first = int(np.searchsorted(self.line, lines_left))
                raise self.error(int(self.line[first]), "follows the last node")
            self.num_lines = lines_left
        self.counts = np.bincount(self.line, minlength=self.num_lines)
        self.place = np.arange(starts.shape[0]) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )

    def _integers(self, digits: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        longest = int(lengths.max(initial=0))
        if longest > _DIGITS:
            k = int(np.argmax(lengths))
            raise self.error(int(self.line[k]), f"has a number of {longest} digits")
        out = np.zeros(starts.shape[0], np.int64)
        for k in range(longest):
            still = np.flatnonzero(lengths > k)
            out[still] = 10 * out[still] + digits[starts[still] + k]
        return out

    def number_of(self, line: int) -> int:
        """Return the number in the file of a line that is counted without comments."""
        for offset, text in enumerate(self.block.text.split(b"\n")):
            if not text.startswith(b"%"):
                line -= 1
            if line < 0:
                return self.block.first + offset
        return self.block.first

    def error(self, line: int, message: str, value: int | None = None) -> InputError:
        number = self.number_of(line)
        text = self.block.text.split(b"\n")[number - self.block.first]
        return self.block.error(number, message, text if value is None else value)


def _neighbours(numbers: _Numbers, first: int, header: _Header) -> EdgeChunk:
    """Return the edges of nodes `first`, `first + 1`, ... that these lines list."""
    short = numbers.counts < header.skipped
    if header.weighted:
        short |= (numbers.counts - header.skipped) % 2 == 1
    if short.any():
        line = int(np.argmax(short))
        raise numbers.error(line, "has too few numbers for the format in the header")
    place = numbers.place - header.skipped
    step = 2 if header.weighted else 1
    at = np.flatnonzero((place >= 0) & (place % step == 0))
    neighbour, lines = numbers.values[at], numbers.line[at]
    bad = (neighbour < 1) | (neighbour > header.num_nodes)
    if bad.any():
        k = int(np.argmax(bad))
        raise numbers.error(
            int(lines[k]), f"neighbours are numbered 1 .. {header.num_nodes}", int(neighbour[k])
        )
    return EdgeChunk(
        first + lines,
        neighbour - 1,
        place=lambda k: f"line {numbers.number_of(int(lines[k]))}",
        weight=numbers.values[at + 1] if header.weighted and header.keep_weights else None,
    )
