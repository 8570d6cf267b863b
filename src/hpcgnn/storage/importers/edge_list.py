"""Edge lists: text with a line per edge (gzip or not), or .npy arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.delimited import records
from hpcgnn.storage.importers.pairs import array_pair, edges_from, pair_column
from hpcgnn.storage.importers.reading import open_binary
from hpcgnn.storage.importers.source import Edges, Options, Source
from hpcgnn.storage.importers.text import Block, Table

_FIELDS: list[tuple[str, type]] = [
    ("source", np.int64),
    ("destination", np.int64),
    ("weight", np.float64),
]
_HEAD = 4096
_KONECT = re.compile(
    rb"%[ \t]*(sym|asym|bip)[ \t]+\w+[ \t]*(?:\n%[ \t]*\d+[ \t]+(\d+)[ \t]+(\d+)\b)?"
)


def read_edge_list(paths: list[Path], options: Options) -> Source:
    """One graph from one or more text files, one .npy [2, E] or [E, 2], or a pair of .npy [E].

    Raises:
        InputError: files that don't go together, or the line that is wrong.
    """
    arrays = [path for path in paths if path.suffix == ".npy"]
    if options.edge_weights is not None and not arrays:
        raise InputError("--edge-weights goes with .npy edges: name a column here", file=paths[0])
    if not arrays:
        return _text(paths, options)
    if len(arrays) != len(paths) or len(paths) > 2:
        raise InputError("give one .npy file, a pair of them, or text files", file=paths[-1])
    if options.columns or options.skip_lines is not None:
        raise InputError("--columns and --skip-lines go with text, not .npy", file=paths[0])
    if len(paths) == 1:
        ends = pair_column(ArraySource(paths[0]), options.limit)
    else:
        ends = array_pair(*paths)
    return Source(paths[0], edges_from(ends, weight=options.edge_weights), rows_as_given=True)


@dataclass(frozen=True)
class _Sides:
    """Sizes of the two sides of a bipartite graph, each numbered from 1 in the file."""

    left: int
    right: int

    def shift(self, ids: np.ndarray, destination: bool, table: Table, block: Block) -> np.ndarray:
        size, offset = (self.right, self.left) if destination else (self.left, 0)
        bad = (ids < 1) | (ids > size)
        if bad.any():
            k = int(np.argmax(bad))
            raise InputError(
                f"the header says that this side is numbered 1 .. {size}",
                file=block.file,
                dataset=table.place(block, k),
                value=int(ids[k]),
            )
        return ids - 1 + offset


def _text(paths: list[Path], options: Options) -> Source:
    with open_binary(paths[0]) as file:
        head = file.read(_HEAD).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    konect = _KONECT.match(head)
    if konect is not None and konect[1] == b"bip":
        return _two_sides(paths, options, konect)
    source = Source(paths[0], _edges(paths, options, None), rows_as_given=True)
    comments = [line for line in head.lower().split(b"\n") if line[:1] in (b"#", b"%")]
    if konect is not None and konect[1] == b"sym":
        source.symmetrise = True
        source.notes.append(
            "its header says `sym`: each edge is stored both ways (--no-symmetrise: once)"
        )
    elif any(re.search(rb"\bundirected\b", line) for line in comments):
        source.notes.append(
            "its header says undirected, and the edges are taken as they stand: --symmetrise adds"
            " the missing reverses"
        )
    return source


def _two_sides(paths: list[Path], options: Options, konect: re.Match[bytes]) -> Source:
    if len(paths) > 1 or konect[2] is None:
        raise InputError(
            "its header says `bip`: both sides are numbered from 1, and only one file with a line"
            " `% edges left right` tells them apart",
            file=paths[0],
        )
    sides = _Sides(int(konect[2][:18]), int(konect[3][:18]))
    source = Source(paths[0], _edges(paths, options, sides), num_nodes=sides.left + sides.right)
    source.notes.append(
        f"its header says `bip`: left ids 1 .. {sides.left} become nodes 0 .. {sides.left - 1},"
        f" right ids 1 .. {sides.right} those after"
    )
    return source


def _edges(paths: list[Path], options: Options, sides: _Sides | None) -> Iterator[Edges]:
    for path in paths:
        for table, block, rows in records(path, options, _FIELDS, 2):
            weighted = options.weights and "weight" in (rows.dtype.names or ())
            ends = [np.ascontiguousarray(rows[name]) for name in ("source", "destination")]
            if sides is not None:
                ends = [sides.shift(ids, k == 1, table, block) for k, ids in enumerate(ends)]
            yield Edges(
                ends[0],
                ends[1],
                place=lambda k, table=table, block=block: table.place(block, k),  # type: ignore[misc]
                weight=rows["weight"] if weighted else None,
            )
