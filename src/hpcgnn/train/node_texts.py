"""What a user calls the nodes and classes of which predictions are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, warn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import FindPlaces, look_up
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.read.names import open_encoding, open_names, read_encoding
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.schema import GRAPH, NAMES


@dataclass(frozen=True)
class FindNodeIds:
    """Derives what the user knows each local node by: int64 `[n]`, or bytes of one width, UTF-8.

    Collective. Each rank reads its share of the names, wherever their nodes are.

    Raises:
        InputError: the file that the graph was read from is damaged, or another one by now.
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
    """The file that the graph was read from, graph.h5 or a partition file."""
    with Reader(file, None) as reader:
        mark = "fingerprint" if reader.text("format") == GRAPH else "graph_fingerprint"
        if reader.text(mark) != graph.graph_fingerprint:
            raise InputError("is another file than the graph was read from", file=file)
        yield reader


@dataclass
class NodeTexts:
    """Names of classes, and the nodes that are wanted; of the rank that writes.

    Attributes:
        class_names: of the classes 0, 1, ...
        wanted: ids, ascending, of the nodes to write: int64, or bytes where nodes have names;
            None: all.
    """

    class_names: list[str] = field(default_factory=list)
    wanted: np.ndarray | None = None
    _found: int = 0

    def count(self, num_nodes: int) -> int:
        """How many nodes are written of a graph of `num_nodes`."""
        return num_nodes if self.wanted is None else len(self.wanted)

    def begin(self) -> None:
        """The nodes come once more, from the first."""
        self._found = 0

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


def node_texts(
    graph: PartitionedGraph, only: Path | None, *, of_labels: bool, trained_on: str | None = None
) -> NodeTexts:
    """The texts that go with the predictions; one rank.

    Args:
        only: a table whose nodes alone are wanted: by the column that named the nodes of the graph,
            or the first.
        of_labels: classes are those of the nodes' labels, whose names the graph's file keeps.
        trained_on: fingerprint of the graph whose classes are predicted; None: this one.

    Raises:
        InputError: a damaged file, or a table without ids.
    """
    encoding, named = Encoding(), False
    if graph.file is not None:
        with _opened(graph.file, graph) as reader:
            encoding = read_encoding(open_encoding(reader)) or encoding
            named = reader.is_group(NAMES)
    wanted = None if only is None else _listed(only, encoding, named)
    classes = encoding.classes if of_labels else []
    if classes and trained_on not in (None, graph.graph_fingerprint, encoding.like):
        warn(
            "hpcgnn: note: classes go by number: the model was trained on those of another "
            "graph (convert --like GRAPH.h5 reads tables as that one's were)"
        )
        classes = []
    return NodeTexts(classes, wanted)


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
