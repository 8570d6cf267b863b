"""Text files that hold only numbers: edge lists and triples, with columns chosen by number."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError, counted
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.npz import read_npz
from hpcgnn.storage.importers.opening import open_binary
from hpcgnn.storage.importers.pairs import array_pair, beside, edges_from, pair_column
from hpcgnn.storage.importers.source import EdgeChunk, ImportOptions, Source
from hpcgnn.storage.importers.text import (
    Table,
    TextBlock,
    blocks,
    data_lines,
    fields_of,
    guess_delimiter,
    readable,
    skip_lines,
)


def records(
    path: Path, options: ImportOptions, fields: list[tuple[str, type]], needed: int
) -> Iterator[tuple[Table, TextBlock, np.ndarray]]:
    """Yield blocks of a text file with their structured arrays.

    Args:
        fields: name and type of the columns. The first `needed` are required, the others are read
            if `options.columns` names them. The first and the last required columns are node ids.

    Raises:
        InputError: a line is malformed, or the first line may be the sizes of the graph and not an
            edge; the error names the line.
    """
    found = skip_lines(blocks(path), options.skip_lines or 0)
    first, line = _first_data(found)
    if first is None:
        return
    table = _table(first, *line, options, fields, needed)
    sizes = _size_line(first, table, *line) if options.skip_lines is None else None
    for block, rows in table.parse_all(itertools.chain([first], found), options.over):
        if sizes is not None:
            sizes.compare(rows[fields[0][0]], rows[fields[needed - 1][0]])
        yield table, block, rows
    if sizes is not None:
        sizes.check()


def _first_data(found: Iterator[TextBlock]) -> tuple[TextBlock | None, tuple[int, bytes]]:
    """Return the first block that holds data, with number and text of its first data line."""
    barren = 0
    for block in found:
        line = next(data_lines(block), None)
        if line is not None:
            return block, line
        barren += len(block.text)
        block.check_barren(barren)
    return None, (0, b"")


def _table(
    block: TextBlock,
    number: int,
    line: bytes,
    options: ImportOptions,
    fields: list[tuple[str, type]],
    needed: int,
) -> Table:
    """Return how to read the columns."""
    delimiter = guess_delimiter(line)
    found = fields_of(line, delimiter)
    chosen = options.columns
    if not chosen:
        if len(found) != needed:
            numbers = ",".join(str(k + 1) for k in range(needed))
            raise block.error(
                number,
                f"has {counted(len(found), 'column')}: choose with --columns, such as {numbers}, "
                "or skip lines that are not edges with --skip-lines",
                line,
            )
        return Table(fields[:needed], delimiter=delimiter, padded=False)
    if not needed <= len(chosen) <= len(fields):
        names = ", ".join(name for name, _ in fields)
        raise block.error(number, f"--columns takes {needed} to {len(fields)}: {names}", chosen)
    if not all(name.isdecimal() and len(name) < _DIGITS for name in chosen):
        raise block.error(number, "is not a header with column names", line)
    places = tuple(int(name) - 1 for name in chosen)
    if not all(0 <= place < len(found) for place in places):
        raise block.error(number, f"has columns 1 to {len(found)}", chosen)
    if len(set(places)) != len(places):
        raise block.error(number, "--columns names a column twice", chosen)
    return Table(
        fields[: len(chosen)],
        columns=places,
        width=len(found),
        delimiter=delimiter,
        padded=False,
    )


def first_fields(path: Path, options: ImportOptions) -> list[str]:
    """Return the fields of the first line that is not empty or a comment; [] if there is none."""
    _, (_, line) = _first_data(skip_lines(blocks(path), options.skip_lines or 0))
    found = fields_of(line, guess_delimiter(line)) if line else []
    return [readable(field) for field in found]


@dataclass
class _SizeLine:
    """A first line that may hold the sizes of the graph (nodes, ..., edges) instead of an edge."""

    block: TextBlock
    number: int
    line: bytes
    nodes: int
    edges: int
    largest: int = -1
    count: int = -1  # number of lines after the first

    def compare(self, *ends: np.ndarray) -> None:
        """Take note of the node ids of some more lines."""
        first = 1 if self.count < 0 < ends[0].shape[0] else 0
        self.count += ends[0].shape[0]
        for ids in ends:
            self.largest = max(self.largest, int(ids[first:].max(initial=-1)))

    def check(self) -> None:
        both_ways = 2 * self.edges  # each edge may be listed in both directions, but counted once
        fits = self.count in (self.edges, both_ways) and self.largest <= self.nodes
        if self.count > 0 and fits:
            raise self.block.error(
                self.number,
                f"looks like the sizes of the graph, since {self.count} edges follow: use "
                f"--skip-lines {self.number} to skip it, or --skip-lines 0 if it is an edge",
                self.line,
            )


def _size_line(block: TextBlock, table: Table, number: int, line: bytes) -> _SizeLine | None:
    """Return the first line as possible sizes; None if it is not two or three natural numbers."""
    words = fields_of(line, table.delimiter)
    if block.first > number or not 2 <= len(words) <= 3:
        return None
    if not all(word.isdigit() and len(word) < 19 for word in words):
        return None
    return _SizeLine(block, number, line, nodes=int(words[0]), edges=int(words[-1]))


_FIELDS: list[tuple[str, type]] = [
    ("source", np.int64),
    ("destination", np.int64),
    ("weight", np.float64),
]
_HEAD = 4096
_DIGITS = 10  # the number of a column has fewer digits
_SNAP = re.compile(rb"(?m)^#[^\n]*\bEdges:[ \t]*(\d+)")
_KONECT_SIZES = re.compile(rb"%[ \t]*a?sym\b[^\n]*\n%[ \t]*(\d+)[ \t]+\d+[ \t]+\d+\b")
_KONECT = re.compile(
    rb"%[ \t]*(sym|asym|bip)[ \t]+(\w+)[ \t]*(?:\n%[ \t]*\d+[ \t]+(\d+)[ \t]+(\d+)\b)?"
)
_UNWEIGHTED = (b"unweighted", b"positive")  # a third column is 1, or the edge's multiplicity
_WEIGHTED = (b"weighted", b"posweighted", b"signed", b"multisigned", b"multiweighted")


def read_edge_list(paths: list[Path], options: ImportOptions) -> Source:
    """Return the graph of text files, one .npy [2, E] or [E, 2], or a pair of .npy [E].

    Raises:
        InputError: the files don't go together, or a line is malformed.
    """
    arrays = [path for path in paths if path.suffix == ".npy"]
    if options.edge_weights is not None and not arrays:
        raise InputError(
            "--edge-weights is for .npy edges: name a column with --weight", file=paths[0]
        )
    if not arrays:
        source = _text(paths, options)
        if (options.edge_labels or options.edge_split) is not None:
            source.edges = beside(source.edges, options.edge_labels, options.edge_split)
        return source
    if len(arrays) != len(paths) or len(paths) > 2:
        raise InputError("give one .npy file, a pair of them, or text files", file=paths[-1])
    if options.columns or options.skip_lines is not None:
        raise InputError("--columns and --skip-lines are for text, not .npy", file=paths[0])
    if len(paths) == 1:
        ends = pair_column(ArraySource(paths[0]), options.limit)
    else:
        ends = array_pair(*paths)
    edges = edges_from(
        ends,
        weight=options.edge_weights,
        labels=options.edge_labels,
        split=options.edge_split,
    )
    return Source(paths[0], edges, num_edges=ends.length, rows_as_given=True)


@dataclass(frozen=True)
class _Sides:
    """The sizes of the two sides of a bipartite graph, each numbered from 1 in the file."""

    left: int
    right: int

    def shift(
        self, ids: np.ndarray, destination: bool, table: Table, block: TextBlock
    ) -> np.ndarray:
        size, offset = (self.right, self.left) if destination else (self.left, 0)
        table.check_numbered(ids, size, block, "the header says that the ids of this side are")
        return ids - 1 + offset


def _text(paths: list[Path], options: ImportOptions) -> Source:
    with open_binary(paths[0]) as file:
        head = file.read(_HEAD).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    konect = _KONECT.match(head)
    notes: list[str] = []
    if konect is not None:
        options = _konect_columns(options, konect[2], head, notes)
    if konect is not None and konect[1] == b"bip":
        source = _two_sides(paths, options, konect)
        source.notes += notes
        return source
    source = Source(paths[0], _edges(paths, options, None), rows_as_given=True)
    source.notes += notes
    announced = _SNAP.search(head) or _KONECT_SIZES.match(head)
    if announced is not None and len(paths) == 1:
        source.edges = _counted(source, source.edges, int(announced[1][:18]))
    comments = [line for line in head.lower().split(b"\n") if line[:1] in (b"#", b"%")]
    if konect is not None and konect[1] == b"sym":
        source.symmetrise = True
        source.notes.append(
            "its header says `sym`: each edge is stored both ways (--no-symmetrise: once)"
        )
    elif any(re.search(rb"\bundirected\b", line) for line in comments):
        source.notes.append(
            "its header says undirected, but the edges are read as they are: --symmetrise adds the "
            "missing reverses"
        )
    return source


def _konect_columns(
    options: ImportOptions, weights: bytes, head: bytes, notes: list[str]
) -> ImportOptions:
    """Return the options with the columns of KONECT's format: source, destination, weight, time."""
    rows = [line for line in head.split(b"\n") if line.strip() and line[:1] != b"%"]
    columns = len(rows[0].split()) if rows else 2
    if options.columns or columns < 3 or weights not in (*_UNWEIGHTED, *_WEIGHTED):
        return options
    taken = 3 if weights in _WEIGHTED and options.weights else 2
    what = "column 3 is the weight" if taken == 3 else "columns 1 and 2 are read"
    left = ", the time is left out" if taken == 3 and columns > 3 else ""
    notes.append(f"its header says `{weights.decode()}`: {what}{left} (--columns chooses)")
    return replace(options, columns=("1", "2", "3")[:taken])


def _counted(source: Source, edges: Iterator[EdgeChunk], announced: int) -> Iterator[EdgeChunk]:
    """Yield the same edges; add a note if their number is not that of the header."""
    found = 0
    for chunk in edges:
        found += chunk.source.shape[0]
        yield chunk
    if found != announced:
        source.notes.append(
            f"its header announces {counted(announced, 'edge')}, and {found:,} follow"
        )


def _two_sides(paths: list[Path], options: ImportOptions, konect: re.Match[bytes]) -> Source:
    if len(paths) > 1 or konect[3] is None:
        raise InputError(
            "its header says `bip`: both sides are numbered from 1, and only one file with a line"
            " `% edges left right` tells them apart",
            file=paths[0],
        )
    sides = _Sides(int(konect[3][:18]), int(konect[4][:18]))
    source = Source(paths[0], _edges(paths, options, sides), num_nodes=sides.left + sides.right)
    source.notes.append(
        f"its header says `bip`: left ids 1 .. {sides.left} become nodes 0 .. {sides.left - 1},"
        f" right ids 1 .. {sides.right} those after"
    )
    return source


def _edges(paths: list[Path], options: ImportOptions, sides: _Sides | None) -> Iterator[EdgeChunk]:
    for path in paths:
        for table, block, rows in records(path, options, _FIELDS, 2):
            weighted = options.weights and "weight" in (rows.dtype.names or ())
            ends = [np.ascontiguousarray(rows[name]) for name in ("source", "destination")]
            if sides is not None:
                ends = [sides.shift(ids, k == 1, table, block) for k, ids in enumerate(ends)]
            yield EdgeChunk(
                ends[0],
                ends[1],
                place=lambda k, table=table, block=block: table.place(block, k),  # type: ignore[misc]
                weight=rows["weight"] if weighted else None,
            )


_TRIPLE_FIELDS: list[tuple[str, type]] = [
    ("head", np.int64),
    ("relation", np.int64),
    ("tail", np.int64),
]


def read_triples(paths: list[Path], options: ImportOptions) -> Source:
    """Return a graph of edges from head to tail, each with its relation.

    Raises:
        InputError: a line or an array is invalid.
    """
    if paths[0].suffix == ".npz" and len(paths) == 1:
        if options.columns or options.skip_lines is not None:
            raise InputError("--columns and --skip-lines are for text, not .npz", file=paths[0])
        return read_npz(paths[0], options, triples=True)
    return Source(paths[0], _text_triples(paths, options), rows_as_given=True)


def _text_triples(paths: list[Path], options: ImportOptions) -> Iterator[EdgeChunk]:
    for path in paths:
        for table, block, rows in records(path, options, _TRIPLE_FIELDS, 3):
            yield EdgeChunk(
                np.ascontiguousarray(rows["head"]),
                np.ascontiguousarray(rows["tail"]),
                place=lambda k, table=table, block=block: table.place(block, k),  # type: ignore[misc]
                relation=np.ascontiguousarray(rows["relation"]),
            )
