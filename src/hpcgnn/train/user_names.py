"""The user's own names of nodes and classes in predictions, and the pairs that a user asks for."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed, require_same_file
from hpcgnn.errors import InputError, counted, warn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import FindPlaces, UserIds, look_up, unknown
from hpcgnn.sar.pairs import NodePairs
from hpcgnn.sorting import sorted_unique
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.read.nodes import open_encoding, open_names, read_encoding
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import GRAPH, NAMES

_LONGEST_ID = 20  # characters of an int64
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class FindNodeIds:
    """Derives the user's id of each local node: int64 `[n]`, or UTF-8 bytes of one width.

    Collective. Each rank reads its share of the names, wherever the nodes are.

    Raises:
        InputError: the file that the graph was read from is damaged, or has been replaced.
    """

    def build(self, graph: PartitionedGraph) -> np.ndarray:
        numbers = graph.original_ids.cpu().numpy()
        if graph.file is None:
            return numbers
        comm, slab_P1 = graph.comm, graph.derived(FindPlaces()).slab_P1
        texts: np.ndarray | None = None
        with agreed(comm, "read the names of the nodes"), _opened(graph.file, graph) as reader:
            names = open_names(reader, graph.num_nodes)
            if names is not None:
                texts = names.padded(int(slab_P1[comm.rank]), int(slab_P1[comm.rank + 1]))
        width = 0 if texts is None else texts.dtype.itemsize
        width = comm.allreduce(width, "max", where="read the names of the nodes")
        if texts is None:
            return numbers
        return look_up(comm, slab_P1, graph.node_ids.cpu().numpy(), texts.astype(f"S{width}"))


@contextmanager
def _opened(file: Path, graph: PartitionedGraph) -> Iterator[Reader]:
    """Open the file that the graph was read from, graph.h5 or a partition file."""
    with Reader(file, None) as reader:
        mark = "fingerprint" if reader.text("format") == GRAPH else "graph_fingerprint"
        if reader.text(mark) != graph.graph_fingerprint:
            raise InputError("is not the file that the graph was read from", file=file)
        yield reader


def encoding_of(file: Path, graph: PartitionedGraph) -> Encoding | None:
    """Return how the tables of the graph in its file were encoded, or None.

    Raises:
        InputError: the file is damaged, or has been replaced.
    """
    with _opened(file, graph) as reader:
        return read_encoding(open_encoding(reader))


@dataclass
class NodeTexts:
    """The class names, and the nodes to write; on the rank that writes.

    Attributes:
        class_names: of the classes 0, 1, ...
        wanted: ids of the nodes to write, ascending: int64, or bytes if nodes have names; None:
            all nodes.
        file: the table that lists them.
    """

    class_names: list[str] = field(default_factory=list)
    wanted: np.ndarray | None = None
    file: Path | None = None
    _found: int = 0
    _seen: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # of `wanted`

    def count(self, num_nodes: int) -> int:
        """Return the number of nodes to write, of a graph of `num_nodes`."""
        return num_nodes if self.wanted is None else len(self.wanted)

    def begin(self) -> None:
        """Begin another pass over the nodes."""
        self._found = 0
        self._seen = np.zeros(0 if self.wanted is None else len(self.wanted), bool)

    def chosen(self, rows: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]]:
        """Return the number of rows chosen before, and those of these rows to be written."""
        first = self._found
        if self.wanted is not None:
            if "original_ids" not in rows:
                raise InputError("--only lists nodes, but this task is on pairs of nodes")
            keep = np.isin(rows["original_ids"], self.wanted)
            rows = {name: array[keep] for name, array in rows.items()}
            self._seen[np.searchsorted(self.wanted, rows["original_ids"])] = True
        self._found += len(next(iter(rows.values())))
        return first, rows

    def check_found(self) -> None:
        """Raise InputError if a node to write was not among the rows of this pass."""
        if self.wanted is None or self._seen.all():
            return
        unknown = self.wanted[~self._seen]
        first = unknown[0].decode() if isinstance(unknown[0], bytes) else int(unknown[0])
        raise InputError(
            f"lists {counted(len(unknown), 'node')} that the graph does not have",
            file=self.file,
            value=first,
        )


def node_texts(
    graph: PartitionedGraph, only: Path | None, *, named_by: str, trained_on: str | None = None
) -> NodeTexts:
    """Return the class names and chosen nodes for the predictions; called on one rank.

    Args:
        only: a table whose nodes alone are written; its id column is that which named the nodes
            of the graph, or the first.
        named_by: `nodes` or `edges`, if classes are those of their labels, whose names are in the
            graph's file; else empty.
        trained_on: fingerprint of the graph whose classes are predicted; None: this graph.

    Raises:
        InputError: a file is damaged, or the table has no ids.
    """
    encoding, named = Encoding(), False
    if graph.file is not None:
        with _opened(graph.file, graph) as reader:
            encoding = read_encoding(open_encoding(reader)) or encoding
            named = reader.is_group(NAMES)
    wanted = None if only is None else _listed(only, encoding, named)
    classes = {"nodes": encoding.classes, "edges": encoding.edge_classes}.get(named_by, [])
    if classes and trained_on not in (None, graph.graph_fingerprint, encoding.like):
        warn(
            "hpcgnn: note: classes are written by number: the model was trained on those of "
            "another graph (convert --like GRAPH.h5 reads tables in the same way as that graph's)"
        )
        classes = []
    return NodeTexts(classes, wanted, only)


def _listed(path: Path, encoding: Encoding, text: bool) -> np.ndarray:
    """Return the distinct ids in a table, ascending."""
    from hpcgnn.storage.importers.cells import INTEGER, TEXT
    from hpcgnn.storage.importers.table_batches import to_numpy
    from hpcgnn.storage.importers.table_files import open_tables
    from hpcgnn.storage.importers.table_options import TextForm

    found = []
    for table in open_tables([path], TextForm()):
        column = encoding.options.get("id")
        if not isinstance(column, str) or table.names.count(column) != 1:
            column = table.names[0]
        for batch in table.batches({column: TEXT if text else INTEGER}):
            array = batch.columns[column].drop_null()
            if text:
                found.append(np.array([value.encode() for value in array.to_pylist()], np.bytes_))
            else:
                found.append(to_numpy(array).astype(np.int64))
    if not found:
        raise InputError("lists no nodes", file=path)
    return sorted_unique(np.concatenate(found))


def read_pairs(path: Path, graph: PartitionedGraph) -> NodePairs:
    """Return the pairs in a text file of two columns, or in an `.npy` `[M, 2]`; collective.

    The columns are source and target, as the graph's original ids, numbers or strings; a first line
    without ids is skipped. Each rank keeps its share; a pair's number is that of its row.

    Raises:
        InputError: the file can't be read, has other content, has ids of no node, or differs
            between ranks.
    """
    comm, ids = graph.comm, graph.derived(FindNodeIds())
    known = UserIds.of(comm, ids, graph.derived(FindPlaces()).first)
    require_same_file(comm, path, "pairs")
    file = _PairFile(path, ids.dtype)
    headed = False
    with agreed(comm, "read the pairs"):
        first = file.first_ids()
    if first is None:
        headed = path.suffix != ".npy"
    elif ids.dtype.kind == "S" and (known.find(first) < 0).all():
        headed = True
        if comm.rank == 0:
            warn(f"hpcgnn: note: {path}: its first line names no nodes and is skipped")
    ends, number = np.zeros((0, 2), ids.dtype), np.zeros(0, np.int64)
    with agreed(comm, "read the pairs"):
        ends, number = file.share(comm.rank, comm.size, int(headed))
    places = known.places_of(np.ascontiguousarray(ends.T).ravel(), path)
    source, target = places.reshape(2, -1)
    return NodePairs(source, target, number)


@dataclass(frozen=True)
class _PairFile:
    """A file of pairs of ids of one dtype: int64, or bytes at least as wide as any node's id."""

    path: Path
    kind: np.dtype

    def first_ids(self) -> np.ndarray | None:
        """Return the two ids in a text's first line; None if they aren't ids, or for an array."""
        if self.path.suffix == ".npy":
            return None
        with self._lines() as (lines, _):
            row = next(lines, [])
            return self._row(row) if len(row) > 1 and all(map(self._is_id, row[:2])) else None

    def share(self, rank: int, size: int, skipped: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a rank's pairs `[m, 2]` and their row numbers, counted after `skipped` rows."""
        if self.path.suffix == ".npy":
            return self._of_array(rank, size)
        kept = []
        with self._lines() as (lines, separator):
            for number, row in enumerate(islice(lines, skipped, None)):
                # Each rank keeps one of every `size` rows; otherwise each would hold all rows.
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
            raise InputError("is not an array of numbers or texts", file=self.path) from None
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
        """Open the file; yields the fields of each non-empty line, and the separator."""
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
            raise InputError(f"is not a text table: {error}", file=self.path) from None

    def _is_id(self, text: str) -> bool:
        if self.kind.kind == "S":
            return bool(text)
        text = text.strip()
        if len(text) > _LONGEST_ID or not text.removeprefix("-").isdecimal():
            return False
        return -(1 << 63) <= int(text) < 1 << 63

    def _row(self, row: list[str]) -> np.ndarray:
        """Return the first two ids of a row in the dtype in which they are compared."""
        if self.kind.kind != "S":
            return np.array([int(row[0]), int(row[1])], self.kind)
        pair = [text.encode() for text in row[:2]]
        for name in pair:
            if len(name) > self.kind.itemsize:
                raise unknown(name, self.path)
        return np.array(pair, self.kind)
