"""What a user calls the nodes and classes of which predictions are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.partition.load import is_graph
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.names import StoredNames
from hpcgnn.storage.read.partition_file import PartitionFile


@dataclass
class NodeTexts:
    """Names of nodes and classes, and the nodes that are wanted; of the rank that writes.

    Attributes:
        names: by row of the graph; None where nodes have numbers alone.
        class_names: of the classes 0, 1, ...
        wanted: ids, ascending, of the nodes to write: int64, or bytes where there are `names`;
            None: all.
    """

    names: StoredNames | None = None
    class_names: list[str] = field(default_factory=list)
    wanted: np.ndarray | None = None
    _width: int = 0
    _found: int = 0

    def __post_init__(self) -> None:
        if self.names is not None:
            self._width = max(1, self.names.longest())

    def count(self, num_nodes: int) -> int:
        """How many nodes are written of a graph of `num_nodes`."""
        return num_nodes if self.wanted is None else len(self.wanted)

    def begin(self) -> None:
        """The nodes come once more, from the first."""
        self._found = 0

    def named(self, rows: dict[str, np.ndarray], low: int, high: int) -> dict[str, np.ndarray]:
        """Rows `low .. high - 1` with names, as bytes of one width, for their ids."""
        if self.names is None or "original_ids" not in rows:
            return rows
        texts = [text.encode() for text in self.names.texts(low, high)]
        return rows | {"original_ids": np.array(texts, np.dtype(f"S{self._width}"))}

    def chosen(self, rows: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]]:
        """Those of the rows that are wanted, and how many came before them."""
        first = self._found
        if self.wanted is not None:
            if "original_ids" not in rows:
                raise InputError("--only lists nodes, and this task is of pairs of nodes")
            keep = np.isin(rows["original_ids"], self.wanted)
            rows = {name: array[keep] for name, array in rows.items()}
        self._found += len(next(iter(rows.values())))
        return first, rows

    def check_found(self) -> None:
        """Refuse where a node that is wanted was not among all that came."""
        if self.wanted is not None and self._found != len(self.wanted):
            raise InputError(
                "the table lists nodes that the graph does not have",
                value=len(self.wanted) - self._found,
            )


@contextmanager
def node_texts(partition: Path, only: Path | None) -> Iterator[NodeTexts]:
    """The texts that a partition file keeps.

    Args:
        only: a table whose nodes alone are wanted: by the column that named the nodes of the graph,
            or the first.

    Raises:
        InputError: a damaged file, or a table without ids.
    """
    file = GraphFile(partition) if is_graph(partition) else PartitionFile(partition)
    with file:
        encoding = file.read_encoding() or Encoding()
        wanted = None if only is None else _listed(only, encoding, file.names is not None)
        yield NodeTexts(file.names, encoding.classes, wanted)


def _listed(path: Path, encoding: Encoding, text: bool) -> np.ndarray:
    """The ids in a table, ascending, each once."""
    from hpcgnn.storage.importers.table_files import INTEGER, TEXT, open_tables, to_numpy
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
    return np.unique(np.concatenate(found))
