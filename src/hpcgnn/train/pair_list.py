"""Pairs of nodes that the user asks about, from a file."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.user_ids import FindUserIds
from hpcgnn.sar.pairs import NodePairs

_LONGEST_ID = 20  # characters of an int64


def read_pairs(path: Path, graph: PartitionedGraph) -> NodePairs:
    """The pairs of a text file of two columns, or of an `.npy` `[M, 2]`; collective.

    Ids are those that the graph came with, source and target; a first line of words is passed over.
    Each rank keeps its share; the number of a pair is that of its row.

    Raises:
        InputError: it can't be read, holds something else, or ids that no node has.
    """
    comm = graph.comm
    ends = np.zeros((0, 2), np.int64)
    with agreed(comm, "read the pairs"):
        try:
            read = _of_array if path.suffix == ".npy" else _of_text
            ends, first, step = read(path, comm.rank, comm.size)
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror}", file=path) from None
    number = first + step * np.arange(len(ends), dtype=np.int64)
    places = graph.derived(FindUserIds()).places_of(np.ascontiguousarray(ends.T).ravel(), path)
    source, target = places.reshape(2, -1)
    return NodePairs(source, target, number)


def _of_array(path: Path, rank: int, size: int) -> tuple[np.ndarray, int, int]:
    """This rank's slab, the number of its first row, and of rows from one to the next."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        raise InputError("is no array of numbers", file=path) from None
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        shape = f"{rows.dtype} {list(rows.shape)}"
        raise InputError("must be integers [M, 2], source and target", file=path, value=shape)
    low, high = (len(rows) * r // size for r in (rank, rank + 1))
    return np.asarray(rows[low:high], dtype=np.int64), low, 1


def _of_text(path: Path, rank: int, size: int) -> tuple[np.ndarray, int, int]:
    """Every `size`-th row from number `rank` on, which no rank must hold all of."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        first = file.readline(1 << 16)
        separator = next((mark for mark in ",\t; " if mark in first), ",")
        named = any(not _is_id(text) for text in first.strip().split(separator))
        file.seek(0)
        lines = csv.reader(file, delimiter=separator, skipinitialspace=True)
        kept = []
        for number, row in enumerate(islice(lines, int(named), None)):
            if number % size != rank:
                continue
            if len(row) < 2 or not (_is_id(row[0]) and _is_id(row[1])):
                raise InputError(
                    f"row {number + 1 + int(named)} must begin with two ids of nodes",
                    file=path,
                    value=separator.join(row)[:80],
                )
            kept.append((int(row[0]), int(row[1])))
    return np.array(kept, np.int64).reshape(-1, 2), rank, size


def _is_id(text: str) -> bool:
    text = text.strip()
    if len(text) > _LONGEST_ID or not text.removeprefix("-").isdecimal():
        return False
    return -(1 << 63) <= int(text) < 1 << 63
