"""Graphs in tables of edges and tables of nodes, joined by the ids of the nodes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.encoding import EncodedColumn, Encoding
from hpcgnn.storage.importers.cells import INTEGER, NUMBER, TEXT
from hpcgnn.storage.importers.names import NameStore
from hpcgnn.storage.importers.node_rows import NodeRows
from hpcgnn.storage.importers.source import (
    Column,
    EdgeChunk,
    ImportOptions,
    Nodes,
    NoteOn,
    Source,
)
from hpcgnn.storage.importers.spool import Scratch
from hpcgnn.storage.importers.table_batches import Batch
from hpcgnn.storage.importers.table_edges import edge_columns
from hpcgnn.storage.importers.table_features import (
    FeatureFit,
    Names,
    features_of,
    odd_values,
    plan,
    read_kind,
    require_columns,
)
from hpcgnn.storage.importers.table_files import TableFile, open_tables, unused_columns
from hpcgnn.storage.importers.table_nodes import node_columns
from hpcgnn.storage.importers.table_options import TableOptions
from hpcgnn.storage.importers.table_types import ID, FoundNodes, NodeType, Typed
from hpcgnn.storage.importers.table_values import (
    are_text,
    batches,
    check_length,
    check_split_columns,
    integers,
    known,
    null,
)


def read_tables(paths: list[Path], tables: TableOptions, options: ImportOptions) -> Source:
    """Return the graph in these tables of edges and those of the nodes.

    Raises:
        InputError: a column is missing or doesn't fit, or a file is damaged; later, while the
            source is read, a value is invalid. Errors name file and line.
    """
    edges = open_tables(paths, tables.form)
    nodes = open_tables(list(tables.nodes), tables.form)
    return source_of(paths[0], edges, nodes, tables, options)


def source_of(
    file: Path,
    edges: list[TableFile],
    nodes: list[TableFile],
    tables: TableOptions,
    options: ImportOptions,
    typed: Typed | None = None,
) -> Source:
    """Return the graph in these tables; `file` is the file that errors name.

    Args:
        typed: the tables of several types, in which case `nodes` is empty.

    Raises:
        InputError: as in `read_tables`.
    """
    like = tables.like
    if like is not None and bool(like.node_types) != (typed is not None):
        made = "by type" if like.node_types else "of one type"
        text = f"the graph of --like was made from tables {made}: describe these alike in meta.yaml"
        raise InputError(text, file=file)
    reading = _Reading(file, edges, nodes, tables, options, typed)
    source = Source(
        file,
        reading.edges(),
        num_edges=reading.num_edges,
        nodes=reading.nodes,
        names=reading.store,
        encoding=reading.encoding,
        lists_nodes=bool(reading.node_tables),
        begin=reading.begin,
        earlier=tables.like_graph,
    )
    if typed is not None:
        encoding = reading.encoding
        source.num_relations = len(encoding.relations)
        source.type_names = {"node_types": encoding.node_types, "edge_types": encoding.edge_types}
    source.notes += reading.notes
    return source


class _Reading:
    """The state of reading a graph from tables."""

    def __init__(
        self,
        file: Path,
        edges: list[TableFile],
        nodes: list[TableFile],
        tables: TableOptions,
        options: ImportOptions,
        typed: Typed | None,
    ) -> None:
        self.options, self._over = tables, options.over
        self.file = file
        self.types = [] if typed is None else typed.types
        self.edge_tables = edges
        self.node_tables = nodes or [table for kind in self.types for table in kind.visible()]
        like = tables.like
        self.missing = tables.missing or (like.missing if like else "refuse")
        self.notes: list[str] = [] if typed is None else list(typed.notes)
        self.ends = edge_columns(edges, tables, options.weights)
        check_split_columns(self.ends.split, file, "--edge-split-column")
        self.columns = node_columns(self.node_tables, tables, file)
        self.text = self._ids_are_text()
        self.store = NameStore(self.file, options.limit) if self.text else None
        self.edge_plan = self._plan(self.ends.features, edges, "edge features")
        self.node_plan = self._plan(self.columns.features, self.node_tables, "features")
        for kind in self.types:
            kind.plan = self._typed_plan(kind)
        plain = len(self.columns.labels) == 1 and not self.options.label_values
        self.labels = (
            Names.of(str(self.columns.label), self.node_tables, tables.categorical)
            if plain
            else None
        )
        self.encoding = Encoding(
            ids=TEXT if self.text else INTEGER,
            options={
                "source": self.ends.source,
                "target": self.ends.target,
                "weight": self.ends.weight,
                "edge_features": self.ends.features,
                "relation": self.ends.relation,
                "edge_label": ",".join(self.ends.labels) or None,
                "id": self.columns.id,
                "label": self.columns.label,
                "label_type": next((kind.name for kind in self.types if kind.labelled), None),
                "features": self.columns.features,
            },
            missing=self.missing,
            like=like.like if like else "",
        )
        if typed is not None:
            self.encoding.node_types = [kind.name for kind in self.types]
            self.encoding.relations = list(typed.relations)
            self.encoding.edge_types = list(typed.relations.values())
        self.rows = NodeRows(
            self.node_tables,
            self.types,
            self.columns,
            tables,
            self._over,
            self.encoding,
            self.store,
            self.missing,
            self.labels,
        )
        self.nodes = self._nodes()
        self._name_ignored()

    def _ids_are_text(self) -> bool:
        if self.options.like is not None:
            return self.options.like.ids == TEXT
        columns = [(t, n) for t in self.edge_tables for n in (self.ends.source, self.ends.target)]
        columns += [(table, str(self.columns.id)) for table in self.node_tables]
        return are_text(columns) or self.options.text_ids

    def _plan(self, names: list[str], tables: list[TableFile], what: str) -> list[EncodedColumn]:
        like = self.options.like
        if like is not None:
            known = like.features if what == "features" else like.edge_features
            if names == like.options.get(what.replace(" ", "_")):
                return known
            raise InputError(
                f"the {what} must be those of --like: {', '.join(c.name for c in known)}",
                file=self.file,
            )
        return plan(names, tables, list(self.options.categorical), what)

    def _typed_plan(self, kind: NodeType) -> list[EncodedColumn]:
        """Return how the columns of a type of nodes will become features."""
        like = self.options.like
        if like is None:
            return plan(kind.columns(), kind.tables, list(self.options.categorical), "features")
        known = like.typed_features.get(kind.name, [])
        for table in kind.tables:
            require_columns(table, [column.name for column in known])
        return known

    def _name_ignored(self) -> None:
        groups = [(self.edge_tables, self.ends.used())]
        if self.types:
            groups = [([table], self.ends.used()) for table in self.edge_tables]
        else:
            groups.append((self.node_tables, self.columns.used()))
        for kind in self.types:
            used = self.columns.used() if kind.labelled else {ID}
            groups.append((kind.tables, used | {column.name for column in kind.plan}))
        for tables, used in groups:
            if unused := unused_columns(tables, used):
                self.notes.append(NoteOn(tables[0].path, f"ignored: {', '.join(unused)}"))

    def begin(self, scratch: Scratch) -> None:
        """Read all rows once, if categories, classes or means must be known beforehand."""
        self._learn(scratch)
        self._name_unknown()
        if self.labels is not None:
            self.nodes.num_classes = len(self.encoding.classes)

    def _name_unknown(self) -> None:
        """Add notes on texts that may be meant as missing values or not as classes."""
        encoding, ends = self.encoding, self.ends
        of_nodes = [(self.labels, encoding.classes)]
        of_edges = [(ends.classes, encoding.edge_classes), (ends.relations, encoding.relations)]
        groups = [
            (self.node_tables, encoding.features, of_nodes),
            (self.edge_tables, encoding.edge_features, of_edges),
        ]
        nothing: list[tuple[Names | None, list[str]]] = []
        for kind in self.types:
            groups.append((kind.tables, encoding.typed_features.get(kind.name, []), nothing))
        for tables, features, names in groups:
            notes = odd_values(tables, features, names, self.options.categorical)
            self.nodes.notes += [NoteOn(tables[0].path, note) for note in notes]

    def _learn(self, scratch: Scratch) -> None:
        self.rows.scratch = scratch
        if self.store is not None:
            self.store.begin(scratch)
        for table in self.node_tables:
            if isinstance(table, FoundNodes):
                table.begin(scratch, self._over)
        like = self.options.like
        encoding = self.encoding
        if like is not None:
            encoding.typed_features = like.typed_features
            encoding.features, encoding.edge_features = like.features, like.edge_features
            encoding.classes, encoding.relations = like.classes, like.relations
            encoding.edge_classes = like.edge_classes
            return
        encoding.features, encoding.classes = self._fit(
            self.node_tables, self.node_plan, self.labels
        )
        if len(self.columns.labels) > 1:
            encoding.classes = self.columns.labels
        for kind in self.types:
            if kind.plan:
                (encoding.typed_features[kind.name],) = self._fit(kind.tables, kind.plan)
        relations = None if self.types else self.ends.relations
        texts = relations if relations and relations.kind == TEXT else None
        encoding.edge_features, found, encoding.edge_classes = self._fit(
            self.edge_tables, self.edge_plan, texts, self.ends.classes
        )
        encoding.relations = encoding.relations if self.types else found
        if len(self.ends.labels) > 1 and not self.options.edge_label_values:
            encoding.edge_classes = self.ends.labels

    def _fit(
        self, tables: list[TableFile], columns: list[EncodedColumn], *names: Names | None
    ) -> tuple[Any, ...]:
        """Return the columns, completed by a pass over the rows, and the values of `names`."""
        fit = FeatureFit(columns, self.missing)
        needed = fit.needed()
        named = [column for column in names if column is not None]
        needed |= {column.name: column.read_kind() for column in named}
        rows = 0
        if needed:
            for batch in self._batches(tables, needed):
                rows += batch.num_rows
                fit.add(batch)
                for column in named:
                    column.add(batch)
        fitted = fit.finish()
        empty = [c.name for c in columns if c.name not in {column.name for column in fitted}]
        if empty and not rows:
            raise InputError("holds no rows", file=tables[0].path)
        if empty and not fitted:
            raise InputError(
                "has no value in any row: leave it out", file=tables[0].path, dataset=empty[0]
            )
        if empty:
            text = f"no value in any row of {', '.join(empty)}: not used as a feature"
            self.nodes.notes.append(NoteOn(tables[0].path, text))
        return fitted, *(n.finish() if n is not None else [] for n in names)

    @property
    def num_edges(self) -> int | None:
        numbers = [table.num_rows for table in self.edge_tables]
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    def edges(self) -> Iterator[EdgeChunk]:
        ends, encoding = self.ends, self.encoding
        kind = TEXT if self.text else INTEGER
        wanted = {ends.source: kind, ends.target: kind}
        if ends.weight is not None:
            wanted[ends.weight] = NUMBER
        wanted |= ends.wanted()
        wanted |= {column.name: read_kind(column) for column in self.edge_plan}
        several = len(self.edge_tables) > 1
        for batch in self._batches(self.edge_tables, wanted):
            place = batch.place
            if several:
                place = lambda k, batch=batch: f"{batch.file.name}, {batch.place(k)}"  # type: ignore[misc]  # noqa: E731
            yield EdgeChunk(
                self._ids(batch, ends.source),
                self._ids(batch, ends.target),
                place,
                weight=None if ends.weight is None else known(batch, ends.weight),
                relation=ends.relations_of(batch, encoding.relations),
                features=features_of(batch, encoding.edge_features, self.missing)
                if ends.features
                else None,
                labels=ends.labels_of(batch, encoding.edge_classes),
                split=ends.split_of(batch),
            )

    def _batches(self, tables: list[TableFile], kinds: dict[str, str]) -> Iterator[Batch]:
        return batches(tables, kinds, over=self._over)

    def _ids(self, batch: Batch, name: str) -> np.ndarray:
        array = batch.columns[name]
        if array.null_count:
            raise null(batch, name)
        if self.store is None:
            found = integers(batch, name)
            if found.min(initial=0) < 0:
                row = int(np.argmin(found))
                text = "ids are numbers from 0: --string-ids reads them as text"
                raise batch.error(name, row, text, int(found[row]))
            return found
        check_length(batch, name)
        # If tables list the nodes, only the names in these are kept.
        return self.store.codes(array) if self.node_tables else self.store.add(array)

    def _nodes(self) -> Nodes:
        nodes = Nodes()
        if not self.node_tables:
            nodes.split_ratio, nodes.split_seed = self.options.split_ratio, self.options.seed
            if self.store is not None:
                nodes.ids = Column(self.file, "ids", self.store.ids())
            return nodes
        file = self.file if self.types else self.node_tables[0].path
        nodes.ids = _Ids(file, str(self.columns.id), self.rows.ids(), self)
        self.rows.add_to(nodes)
        return nodes

    def describe(self, value: int, edges: bool) -> tuple[str, Any]:
        """Return the place of an id, in an edge or in the tables of nodes, and its value there."""
        tables = self.edge_tables if edges else self.node_tables
        names = [self.ends.source, self.ends.target] if edges else [str(self.columns.id)]
        kind = TEXT if self.text else INTEGER
        place, shown, seen = "", value, 0
        for batch in self._batches(tables, dict.fromkeys(names, kind)):
            for name in names:
                array = batch.columns[name]
                ids = integers(batch, name) if self.store is None else self.store.codes(array)
                for row in np.flatnonzero(ids == value).tolist():
                    place, shown = f"{batch.file.name}, {batch.place(row)}", array[row].as_py()
                    seen += 1
                    if edges or seen == 2:
                        return place, shown
        return place, shown


@dataclass
class _Ids(Column):
    """Ids of nodes, whose errors name the original text and the line."""

    reading: _Reading

    def error(self, message: str, value: object = None) -> InputError:
        if not isinstance(value, int | np.integer):
            return super().error(message, value)
        place, shown = self.reading.describe(int(value), "edge" in message)
        if isinstance(shown, str) and not unicodedata.is_normalized("NFC", shown):
            message += ", in this Unicode form (not NFC): ids are compared by their bytes"
        return InputError(f"{place}: {message}", file=self.file, dataset=self.name, value=shown)
