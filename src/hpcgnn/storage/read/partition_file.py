"""Reading of a partition file: its header, and whole parts with every value checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcgnn.storage import schema
from hpcgnn.storage.checks import Place
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.fingerprint import MASK, fingerprint, to_hex
from hpcgnn.storage.read.graph_file import read_counts
from hpcgnn.storage.read.nodes import SLAB, NodeColumns, open_encoding, open_names, read_encoding
from hpcgnn.storage.read.parts import (
    Claims,
    EdgeLists,
    Part,
    check_edges,
    check_ids,
    check_sends,
    check_sums,
    disagreement,
    new_key,
    pair_sum,
    part_name,
    sum_range,
)
from hpcgnn.storage.read.reader import FormatFile, StoredColumn
from hpcgnn.storage.schema import PARTITION, chunk_rows
from hpcgnn.storage.write.part_writer import write_parts

__all__ = ["EdgeLists", "Part", "PartitionFile", "write_parts"]
MAX_PARTS = 1 << 20


class PartitionFile(FormatFile):
    """An open partition file; opening it reads and checks the header only.

    Attributes: `path`, `header` (every attribute, `report` and `config` decoded), `counts`,
    `num_parts`, `symmetric`, `sizes` int64 [P, 2] (nodes and in-edges of each part), `names` (the
    text ids of the nodes in the order of the graph, or None).

    Raises:
        InputError: the file is damaged or not as expected, here and in every read; the error names
            file, dataset and value.
    """

    format = PARTITION

    def _open(self) -> None:
        reader = self._reader
        self.counts = read_counts(reader)
        self.num_parts = reader.integer("num_parts", 1, MAX_PARTS)
        self.symmetric = bool(reader.integer("symmetric", 0, 1))
        self.header: dict[str, Any] = {
            "format": PARTITION,
            "version": reader.attributes["version"],
            "num_parts": self.num_parts,
            "symmetric": int(self.symmetric),
            **self.counts.attributes(),
            **{name: reader.text(name) for name in ("method", "graph_fingerprint", "fingerprint")},
            **{name: reader.json(name) for name in ("report", "config")},
        }
        sizes = reader.column("exchange/sizes", ("int64",), (self.num_parts, 2))
        self.sizes = sizes.read()
        if (self.sizes < 0).any():
            raise sizes.place().error("must not be negative", int(self.sizes.min()))
        totals = [int(total) for total in self.sizes.sum(axis=0)]
        if totals != [self.counts.num_nodes, self.counts.num_edges]:
            raise sizes.place().error("must add up to num_nodes and num_edges", totals)
        self.names = open_names(reader, self.counts.num_nodes)
        self._encoding = open_encoding(reader)
        square = (self.num_parts, self.num_parts)
        sides = ("in",) if self.symmetric else ("in", "out")
        self._exchange = {
            side: reader.column(f"exchange/{side}", ("int32",), square) for side in sides
        }

    def read_encoding(self) -> Encoding | None:
        """Return how the tables that the graph was made from were encoded, or None."""
        return read_encoding(self._encoding)

    def read_part(self, index: int) -> Part:
        """Return part `index`, with every value checked and the part's fingerprint compared."""
        reader = self._reader
        group = part_name(index)
        if not 0 <= index < self.num_parts:
            raise reader.place(group).error(f"parts are 0 .. {self.num_parts - 1}", index)
        num_local, num_edges = (int(size) for size in self.sizes[index])
        ids = reader.column(f"{group}/nodes/ids", ("int64",), (num_local,)).read()
        check_ids(ids, self.counts.num_nodes, reader.place(f"{group}/nodes/ids"))
        columns = NodeColumns(reader, f"{group}/", num_local, self.counts)
        nodes = columns.read(0, num_local)
        inward = self._read_edges(index, "in", num_local)
        if inward.columns.shape[0] != num_edges:
            raise reader.place(f"{group}/in/columns").error(
                f"must have {num_edges} edges", inward.columns.shape[0]
            )
        outward = None if self.symmetric else self._read_edges(index, "out", num_local)
        part = Part(index, self.num_parts, ids, nodes.original_ids, nodes, inward, outward)
        found = to_hex(sum(fingerprint(name, array) for name, array in part.arrays().items()))
        if found != reader.group_attribute(group, "fingerprint"):
            raise reader.place(group).error("the data don't match their fingerprint", found)
        check_sends(part, reader.place(group))
        return part

    def part_fingerprint(self, index: int) -> int:
        """Return the part's fingerprint in the file, which `read_part` compares with the data."""
        return int(str(self._reader.group_attribute(part_name(index), "fingerprint")), 16)

    def place(self, dataset: str) -> Place:
        return self._reader.place(dataset)

    def _read_edges(self, index: int, side: str, num_local: int) -> EdgeLists:
        reader = self._reader
        group = f"{part_name(index)}/{side}"

        def take(name: str, dtype: str, *shape: int | None) -> np.ndarray:
            return reader.column(f"{group}/{name}", (dtype,), shape).read()

        ends = self.num_parts + 1
        pointers = {
            name: take(name, "int64", ends)
            for name in ("edge_ptr", "row_ptr", "recv_ptr", "send_ptr")
        }
        rows = take("rows", "int32", None)
        columns = take("columns", "int32", None)
        edges, width = columns.shape[0], self.counts.edge_width
        weighted = reader.has(f"{group}/weight")
        lists = EdgeLists(
            rows=rows,
            counts=take("counts", "int32", rows.shape[0]),
            columns=columns,
            weight=take("weight", "float32", edges) if weighted else None,
            relation=take("relation", "int32", edges) if self.counts.num_relations else None,
            features=take("features", "float32", edges, width) if width else None,
            send_rows=take("send_rows", "int32", None),
            **pointers,
        )
        if side == "in" and reader.has(f"{group}/labels"):
            column = reader.rows(f"{group}/labels", schema.LABEL_TYPES, edges)
            lists.labels = column.read()
        if side == "in" and reader.has(f"{group}/split"):
            lists.split = take("split", "int8", edges)
        check_edges(lists, index, num_local, self.counts.num_relations, reader.place(group))
        self._check_exchange(lists, index, side)
        return lists

    def _check_exchange(self, lists: EdgeLists, index: int, side: str) -> None:
        """Check that the lists agree with the numbers of rows that other parts send and receive."""
        matrix = self._exchange[side]
        group = f"{part_name(index)}/{side}"
        if not np.array_equal(matrix.read(index, index + 1)[0], np.diff(lists.send_ptr)):
            raise self._reader.place(f"{group}/send_ptr").error(f"disagrees with {matrix.name}")
        if not np.array_equal(_matrix_column(matrix, index), np.diff(lists.recv_ptr)):
            raise self._reader.place(f"{group}/recv_ptr").error(f"disagrees with {matrix.name}")


def _matrix_column(matrix: StoredColumn, index: int) -> np.ndarray:
    step = chunk_rows(matrix.shape[1:], matrix.dtype)
    return np.concatenate(
        [
            matrix.read(low, min(len(matrix), low + step))[:, index]
            for low in range(0, len(matrix), step)
        ]
    )


def check_whole(file: PartitionFile) -> None:
    """Read every part and check that the parts agree; one process.

    Raises:
        InputError: the first error found.
    """
    if file.names is not None:
        for low in range(0, file.counts.num_nodes, SLAB):
            file.names.texts(low, min(file.counts.num_nodes, low + SLAB))
    file.read_encoding()
    key, first, pairs = new_key(), None, 0
    sums = []
    for index in range(file.num_parts):
        claims = Claims(file.read_part(index), file.part_fingerprint(index), key)
        first = first or claims.form
        claims.check_form(first, file.place(part_name(index)))
        sums.append((claims.ids, claims.fingerprint))
        pairs += pair_sum(claims.received, index, key, reverse=False)
        pairs -= pair_sum(claims.sent, index, key, reverse=True)
    sums.append((-sum_range(0, file.counts.num_nodes, key), 0))
    check_sums(file.place("parts"), sums, file.header["fingerprint"])
    if pairs & MASK:
        raise disagreement(file.place("parts"), "each other")
