"""Pairs of nodes that the user asks about, from a file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, warn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import FindPlaces
from hpcgnn.graph.user_ids import UserIds, unknown
from hpcgnn.sar.pairs import NodePairs
from hpcgnn.train.node_texts import FindNodeIds

_LONGEST_ID = 20  # characters of an int64
_LONGEST_LINE = 1 << 16


def read_pairs(path: Path, graph: PartitionedGraph) -> NodePairs:
    """The pairs of a text file of two columns, or of an `.npy` `[M, 2]`; collective.

    Ids are those that the graph came with, numbers or texts, source and target; a first line that
    holds none is passed over. Each rank keeps its share; the number of a pair is that of its row.

    Raises:
        InputError: it can't be read, holds something else, or ids that no node has.
    """
    comm, ids = graph.comm, graph.derived(FindNodeIds())
    known = UserIds.of(comm, ids, graph.derived(FindPlaces()).first)
    file = _PairFile(path, ids.dtype)
    headed = False
    with agreed(comm, "read the pairs"):
        first = file.first_ids()
    if first is None:
        headed = path.suffix != ".npy"
    elif ids.dtype.kind == "S" and (known.find(first) < 0).all():
        headed = True
        if comm.rank == 0:
            warn(f"hpcgnn: note: {path}: its first line names no nodes and is passed over")
    ends, number = np.zeros((0, 2), ids.dtype), np.zeros(0, np.int64)
    with agreed(comm, "read the pairs"):
        ends, number = file.share(comm.rank, comm.size, int(headed))
    places = known.places_of(np.ascontiguousarray(ends.T).ravel(), path)
    source, target = places.reshape(2, -1)
    return NodePairs(source, target, number)


@dataclass(frozen=True)
class _PairFile:
    """Pairs of ids of one type: int64, or bytes of a width that none is longer than."""

    path: Path
    kind: np.dtype

    def first_ids(self) -> np.ndarray | None:
        """The two ids of a text's first line; None where they can't be ids, or of an array."""
        if self.path.suffix == ".npy":
            return None
        with self._lines() as (lines, _):
            row = next(lines, [])
            return self._row(row) if len(row) > 1 and all(map(self._is_id, row[:2])) else None

    def share(self, rank: int, size: int, skipped: int) -> tuple[np.ndarray, np.ndarray]:
        """A rank's pairs `[m, 2]`, and their rows in the file, without the first `skipped`."""
        if self.path.suffix == ".npy":
            return self._of_array(rank, size)
        kept = []
        with self._lines() as (lines, separator):
            for number, row in enumerate(islice(lines, skipped, None)):
                # Of every `size` rows one, or each rank would hold all.
                if number % size != rank:
                    continue
                if len(row) < 2 or not (self._is_id(row[0]) and self._is_id(row[1])):
                    raise InputError(
                        f"row {number + 1 + skipped} must begin with two ids of nodes",
                        file=self.path,
                        value=separator.join(row)[:80],
                    )
                kept.append(self._row(row))
        ends = np.array(kept, self.kind).reshape(-1, 2)
        return ends, rank + size * np.arange(len(ends), dtype=np.int64)

    def _of_array(self, rank: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror}", file=self.path) from None
        except (ValueError, EOFError):
            raise InputError("is no array of numbers or texts", file=self.path) from None
        texts = self.kind.kind == "S"
        if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in ("US" if texts else "iu"):
            shape, what = f"{rows.dtype} {list(rows.shape)}", "texts" if texts else "integers"
            raise InputError(
                f"must be {what} [M, 2], source and target", file=self.path, value=shape
            )
        low, high = (len(rows) * r // size for r in (rank, rank + 1))
        ends = np.asarray(rows[low:high])
        if ends.dtype.kind == "U":
            ends = np.char.encode(ends, "utf-8")
        if texts and ends.size and ends.dtype.itemsize > self.kind.itemsize:
            longer = np.char.str_len(ends) > self.kind.itemsize
            if longer.any():
                raise unknown(bytes(ends[longer][0]), self.path)
        return ends.astype(self.kind), np.arange(low, high, dtype=np.int64)

    @contextmanager
    def _lines(self) -> Iterator[tuple[Iterator[list[str]], str]]:
        """The fields of each line that isn't empty, and what is between them."""
        if self.path.exists() and not self.path.is_file():
            raise InputError("is no regular file", file=self.path)
        try:
            with self.path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
                first = file.readline(_LONGEST_LINE)
                separator = next((mark for mark in "\t,; " if mark in first), ",")
                file.seek(0)
                rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
                yield (row for row in rows if row), separator
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror}", file=self.path) from None
        except csv.Error as error:
            raise InputError(f"is no table of text: {error}", file=self.path) from None

    def _is_id(self, text: str) -> bool:
        if self.kind.kind == "S":
            return bool(text)
        text = text.strip()
        if len(text) > _LONGEST_ID or not text.removeprefix("-").isdecimal():
            return False
        return -(1 << 63) <= int(text) < 1 << 63

    def _row(self, row: list[str]) -> np.ndarray:
        """Two ids as they are compared."""
        if self.kind.kind != "S":
            return np.array([int(row[0]), int(row[1])], self.kind)
        pair = [text.encode() for text in row[:2]]
        for name in pair:
            if len(name) > self.kind.itemsize:
                raise unknown(name, self.path)
        return np.array(pair, self.kind)
