"""Edge lists: text with a line per edge (gzip or not), or .npy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.delimited import records
from hpcgnn.storage.importers.pairs import array_pair, edges_from, pair_column
from hpcgnn.storage.importers.source import Edges, Options, Source

_FIELDS: list[tuple[str, type]] = [
    ("source", np.int64),
    ("destination", np.int64),
    ("weight", np.float64),
]


def read_edge_list(paths: list[Path], options: Options) -> Source:
    """One graph from one or more text files, one .npy [2, E] or [E, 2], or a pair of .npy [E].

    Raises:
        InputError: files that don't go together, or the line that is wrong.
    """
    arrays = [path for path in paths if path.suffix == ".npy"]
    if options.edge_weights is not None and not arrays:
        raise InputError("--edge-weights goes with .npy edges: name a column here", file=paths[0])
    if not arrays:
        return Source(paths[0], _text_edges(paths, options))
    if len(arrays) != len(paths) or len(paths) > 2:
        raise InputError("give one .npy file, a pair of them, or text files", file=paths[-1])
    if len(paths) == 1:
        ends = pair_column(ArraySource(paths[0]), options.limit)
    else:
        ends = array_pair(*paths)
    return Source(paths[0], edges_from(ends, weight=options.edge_weights))


def _text_edges(paths: list[Path], options: Options) -> Iterator[Edges]:
    for path in paths:
        for table, block, rows in records(path, options, _FIELDS, 2):
            weighted = options.weights and "weight" in (rows.dtype.names or ())
            yield Edges(
                np.ascontiguousarray(rows["source"]),
                np.ascontiguousarray(rows["destination"]),
                place=lambda k, table=table, block=block: table.place(block, k),  # type: ignore[misc]
                weight=rows["weight"] if weighted else None,
            )
