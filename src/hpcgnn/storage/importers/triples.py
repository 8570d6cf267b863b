"""Triples head, relation, tail: text with three integers on a line, or .npz arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.delimited import records
from hpcgnn.storage.importers.npz import read_npz
from hpcgnn.storage.importers.source import Edges, Options, Source

_FIELDS: list[tuple[str, type]] = [
    ("head", np.int64),
    ("relation", np.int64),
    ("tail", np.int64),
]


def read_triples(paths: list[Path], options: Options) -> Source:
    """Edges from head to tail, each with its relation.

    Raises:
        InputError: the line or the array that is wrong.
    """
    if paths[0].suffix == ".npz" and len(paths) == 1:
        if options.columns or options.skip_lines is not None:
            raise InputError("--columns and --skip-lines go with text, not .npz", file=paths[0])
        return read_npz(paths[0], options, triples=True)
    return Source(paths[0], _text_triples(paths, options), rows_as_given=True)


def _text_triples(paths: list[Path], options: Options) -> Iterator[Edges]:
    for path in paths:
        for table, block, rows in records(path, options, _FIELDS, 3):
            yield Edges(
                np.ascontiguousarray(rows["head"]),
                np.ascontiguousarray(rows["tail"]),
                place=lambda k, table=table, block=block: table.place(block, k),  # type: ignore[misc]
                relation=np.ascontiguousarray(rows["relation"]),
            )
