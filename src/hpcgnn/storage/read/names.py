"""The texts by which a user's tables call the nodes, in graph.h5 and in partition files."""

from __future__ import annotations

import numpy as np

from hpcgnn.storage.checks import Place
from hpcgnn.storage.encoding import MAX_BYTES, Encoding
from hpcgnn.storage.read.nodes import read_pointers
from hpcgnn.storage.read.reader import Reader, StoredColumn
from hpcgnn.storage.schema import DATASET, NAMES

SLAB = 1 << 18


class StoredNames:
    """Names by row of the graph: UTF-8, name i in bytes `indptr[i] .. indptr[i + 1] - 1` of `data`.

    Raises:
        InputError: from here and from every read.
    """

    def __init__(self, reader: Reader, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        self.indptr = reader.column(f"{NAMES}/indptr", ("int64",), (num_nodes + 1,))
        self.data = reader.column(f"{NAMES}/data", ("uint8",), (None,))

    def columns(self) -> list[StoredColumn]:
        return [self.indptr, self.data]

    def read(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """`lengths` int64 [high - low] and the bytes of names `low .. high - 1` in a row."""
        indptr = read_pointers(self.indptr, low, high, len(self.data))
        return np.diff(indptr), self.data.read(int(indptr[0]), int(indptr[-1]))

    def texts(self, low: int, high: int) -> list[str]:
        """Names `low .. high - 1`.

        Raises:
            InputError: one is no UTF-8.
        """
        lengths, data = self.read(low, high)
        ends = np.cumsum(lengths).tolist()
        raw = data.tobytes()
        try:
            return [
                raw[end - length : end].decode()
                for end, length in zip(ends, lengths.tolist(), strict=True)
            ]
        except UnicodeDecodeError:
            raise self.data.place().error("holds a name that is no UTF-8") from None

    def padded(self, low: int, high: int) -> np.ndarray:
        """Names `low .. high - 1` as bytes of one width, that of the longest of them.

        Raises:
            InputError: one is no UTF-8.
        """
        slabs = [
            np.array([text.encode() for text in self.texts(start, min(high, start + SLAB))], "S")
            for start in range(low, high, SLAB)
        ]
        return np.concatenate(slabs) if slabs else np.zeros(0, "S1")


def open_names(reader: Reader, num_nodes: int) -> StoredNames | None:
    """The names that the file holds, if any."""
    return StoredNames(reader, num_nodes) if reader.is_group(NAMES) else None


def open_encoding(reader: Reader) -> StoredColumn | None:
    """The dataset that says how tables were encoded, if there is one."""
    return reader.column(DATASET, ("uint8",), (None,)) if reader.has(DATASET) else None


def read_encoding(column: StoredColumn | None) -> Encoding | None:
    """What it says."""
    if column is None:
        return None
    place: Place = column.place()
    if len(column) > MAX_BYTES:
        raise place.error("is too long", len(column))
    return Encoding.from_array(column.read(), place)
