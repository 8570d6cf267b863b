"""GraphML and GEXF, read by networkx: small graphs, whose attributes become tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast
from xml.etree.ElementTree import iterparse

import pyarrow as pa

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.opening import open_binary, require
from hpcgnn.storage.importers.source import ImportOptions, Over, Source
from hpcgnn.storage.importers.table_batches import Batch, first_line, kind_of
from hpcgnn.storage.importers.table_options import TableOptions
from hpcgnn.storage.importers.tables import source_of

_EXPANSION = 60  # memory of a graph of Python objects, as a multiple of the XML file's size
_ROWS = 1 << 14
_GRAPH = re.compile(rb"<graph(?=[\s>/])")


def read_xml(path: Path, options: ImportOptions) -> Source:
    """Return the graph; nodes have a column `id`, edges `source` and `target`, and attributes.

    Raises:
        InputError: the file is too large or damaged, or an attribute has values of several types.
    """
    most = 8 * options.limit // _EXPANSION
    if require(path).stat().st_size > most:
        raise _too_large(path)
    graph = _parse(path, most)
    ends = ("source", "target")
    of_nodes = [(data, {"id": name}) for name, data in graph.nodes(data=True)]
    of_edges = [(data, {"source": a, "target": b}) for a, b, data in graph.edges(data=True)]
    nodes, edges = _columns(path, of_nodes, ("id",)), _columns(path, of_edges, ends)
    chosen = options.tables or TableOptions()
    chosen = replace(chosen, source="source", target="target", id="id", text_ids=True)
    source = source_of(
        path,
        [MemoryTable(path, edges, ends)],
        [MemoryTable(path, nodes, ("id",))],
        chosen,
        options,
    )
    source.symmetrise = not graph.is_directed()
    for what, rows in (("nodes", of_nodes), ("edges", of_edges)):
        if hidden := sorted({name for data, named in rows for name in named if name in data}):
            source.notes.append(
                f"attributes of the {what} called {' and '.join(hidden)} are ignored: the file's "
                f"own {' and '.join(hidden)} are read"
            )
    return source


def _too_large(path: Path) -> InputError:
    return InputError(
        "takes more memory than is allowed: raise --memory, or store tables", file=path
    )


class _Bounded:
    """A reader that refuses files of more than `most` bytes after decompression.

    It reads pieces as long as all before them, since the parser rescans an unfinished text with
    each piece.
    """

    def __init__(self, file: BinaryIO, path: Path, most: int) -> None:
        self._file, self._path, self._most, self._left = file, path, most, most
        self.graphs, self._tail = 0, b""  # elements that may be graphs

    def seek(self, place: int) -> None:
        """Begin again, as networkx does if nothing shows that the file is GraphML."""
        self._file.seek(place)
        self._left, self.graphs, self._tail = self._most, 0, b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left + 1 if size < 0 else max(size, self._most - self._left))
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._path)
        self.graphs += len(_GRAPH.findall(self._tail + data))
        self._tail = data[-len(b"<graph") :]
        return data


def _parse(path: Path, most: int) -> Any:
    import networkx as nx

    name = path.name.removesuffix(".gz").removesuffix(".zst")
    read = nx.read_gexf if name.endswith(".gexf") else nx.read_graphml
    with open_binary(path) as file:
        try:
            bounded = _Bounded(file, path, most)
            graph = read(bounded)
            if bounded.graphs > 1:
                with open_binary(path) as again:
                    _refuse_several(_Bounded(again, path, most), path)
            return graph
        except InputError:
            raise
        except Exception as error:  # the library and the parser raise almost anything
            raise InputError(f"can't be read: {first_line(error)}", file=path) from None


def _refuse_several(file: _Bounded, path: Path) -> None:
    """Raise InputError for a second graph, or one inside a node, which networkx does not read."""
    found = 0
    for event, element in iterparse(cast(BinaryIO, file), ("start", "end")):
        found += event == "start" and element.tag.rpartition("}")[2] == "graph"
        if event == "end":
            element.clear()
    if found > 1:
        raise InputError(
            "holds several graphs, or graphs inside nodes: store one flat graph",
            file=path,
            value=found,
        )


def _columns(
    path: Path, given: list[tuple[dict[str, Any], dict[str, Any]]], first: tuple[str, ...]
) -> dict[str, pa.Array]:
    """Return the columns of rows of (attributes, `first`); an attribute gives way to `first`."""
    rows = [data | named for data, named in given]
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    out = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if name in first:
            values = [str(value) for value in values]
        if any(isinstance(value, dict | list) for value in values):
            continue  # positions and colours for drawing
        try:
            out[name] = pa.array(values)
        except pa.ArrowException:
            raise InputError("holds values of several types", file=path, dataset=name) from None
    return out


class MemoryTable:
    """A table with columns in memory; errors name a row by its values in `named_by`."""

    def __init__(self, path: Path, columns: dict[str, pa.Array], named_by: tuple[str, ...]) -> None:
        self.path = path
        self._named_by = named_by
        self.names = list(columns)
        self.kinds = {name: kind_of(array.type) for name, array in columns.items()}
        self.num_rows: int | None = len(next(iter(columns.values()), ()))
        self._columns = columns

    def is_canonical(self, name: str) -> bool:
        return True

    def batches(self, kinds: dict[str, str], over: Over = map) -> Iterator[Batch]:
        number = len(next(iter(self._columns.values()), ()))
        for low in range(0, number, _ROWS):

            def place(k: int, low: int = low) -> str:
                ends = [str(self._columns[name][low + k]) for name in self._named_by]
                return f"{'node' if len(ends) == 1 else 'edge'} {' - '.join(ends)}"

            part = {name: self._columns[name].slice(low, _ROWS) for name in kinds}
            size = min(_ROWS, number - low)
            yield Batch(self.path, {n: _cast(a, kinds[n]) for n, a in part.items()}, size, place)


def _cast(array: pa.Array, kind: str) -> pa.Array:
    return array.cast({"text": pa.string(), "number": pa.float64()}.get(kind, array.type))
