"""Names of nodes and encodings of tables, from graph.h5 into a partition file."""

from __future__ import annotations

from pathlib import Path

from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.reader import StoredColumn
from hpcgnn.storage.schema import chunk_rows
from hpcgnn.storage.write import atomic


def copy_texts(graph: Path, temporary: Path, path: Path, *, compress: bool) -> None:
    """Copy them, in the order of the graph, into the file that is to be `path`.

    Raises:
        InputError: the graph is damaged.
        OutputError: the file can't be written.
    """
    with GraphFile(graph) as source:
        columns = source.text_columns()
        if columns:
            with atomic.write(temporary, "r+", shown=path) as output:
                for column in columns:
                    _copy(column, output, compress)


def _copy(column: StoredColumn, output: atomic.OutputFile, compress: bool) -> None:
    dataset = output.dataset(column.name, column.dtype, column.shape, compress=compress)
    step = chunk_rows(column.shape[1:], column.dtype)
    for low in range(0, len(column), step):
        high = min(len(column), low + step)
        dataset[low:high] = column.read(low, high)
        output.check()
