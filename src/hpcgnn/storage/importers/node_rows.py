"""What tables of nodes hold, in chunks: ids, types, features, labels and the split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from hpcgnn.errors import InputError
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.importers.cells import INTEGER, NUMBER, TEXT, TIME
from hpcgnn.storage.importers.made_split import split_chunks
from hpcgnn.storage.importers.names import NameStore
from hpcgnn.storage.importers.source import Column, Nodes, NodeSplit, Over
from hpcgnn.storage.importers.spool import Scratch
from hpcgnn.storage.importers.table_batches import Batch, to_numpy
from hpcgnn.storage.importers.table_features import (
    Names,
    class_codes,
    features_of,
    merged_kind,
    read_kind,
)
from hpcgnn.storage.importers.table_files import TableFile
from hpcgnn.storage.importers.table_nodes import NodeTableColumns
from hpcgnn.storage.importers.table_options import TableOptions
from hpcgnn.storage.importers.table_types import NodeType
from hpcgnn.storage.importers.table_values import (
    batches,
    check_length,
    integers,
    null,
    numbers,
    split_codes,
)

_ROWS = 1 << 18


@dataclass
class NodeRows:
    """Reads the rows of node tables, as often as chunks are asked for.

    Attributes:
        types: the types of nodes, each with its tables; empty for nodes of one type.
        columns: the columns of the tables by purpose.
        encoding: how cells become numbers; complete before features or labels are read.
        store: the names of the nodes; None if ids are numbers.
        missing: what a missing feature becomes.
        labels: the column of classes; None without one.
        over: applies a function to pieces of text, possibly in other processes.
        scratch: where temporary files are made; given before a split is made.
    """

    tables: list[TableFile]
    types: list[NodeType]
    columns: NodeTableColumns
    options: TableOptions
    over: Over
    encoding: Encoding
    store: NameStore | None
    missing: str
    labels: Names | None
    scratch: Scratch = field(init=False)

    def add_to(self, nodes: Nodes) -> None:
        """Set what the tables have, apart from the ids."""
        file = self.tables[0].path
        if self.columns.features:
            nodes.features = Column(file, "features", self.features())
        if self.types:
            nodes.types = Column(file, "types of the nodes", self.type_numbers())
        for number, kind in enumerate(self.types):
            if kind.plan:
                path = kind.tables[0].path
                nodes.typed_features[number] = Column(path, "features", self.features(kind))
        if self.columns.labels:
            nodes.labels = Column(file, str(self.columns.label), self.label_values())
            several = "several" if len(self.columns.labels) > 1 else "classes"
            nodes.labels_as = "values" if self.options.label_values else several
        if self.columns.split:
            codes = split_codes(self.tables, self.columns.split, str(self.columns.id))
            nodes.split = NodeSplit(
                file, column=Column(file, str(self.options.split_column), codes)
            )
        elif self.options.split_ratio is not None or self.columns.time is not None:
            if not self.columns.labels:
                raise InputError("a split by ratio or time needs labelled nodes: add --label")
            codes = self.made_split(nodes)
            nodes.split = NodeSplit(file, column=Column(file, "split", codes))

    def ids(self) -> Iterator[np.ndarray]:
        """Yield the ids; texts become numbers of the store."""
        if not self.types:
            yield from self._ids_in(self.tables)
        for kind in self.types:
            kind.count = 0
            for ids in self._ids_in(kind.visible()):
                kind.count += len(ids)
                yield ids

    def type_numbers(self) -> Iterator[np.ndarray]:
        """Yield the number of the type of each node; the ids must have been read."""
        for number, kind in enumerate(self.types):
            for low in range(0, kind.count, _ROWS):
                yield np.full(min(_ROWS, kind.count - low), number)

    def _ids_in(self, tables: list[TableFile]) -> Iterator[np.ndarray]:
        name = str(self.columns.id)
        for batch in self._batches(tables, {name: INTEGER if self.store is None else TEXT}):
            if batch.columns[name].null_count:
                raise null(batch, name)
            if self.store is None:
                yield integers(batch, name)
            else:
                check_length(batch, name)
                yield self.store.add_rows(batch.columns[name])

    def features(self, kind: NodeType | None = None) -> Iterator[np.ndarray]:
        """Yield the features of all nodes, or of those of a type."""
        tables, columns = self.tables, self.encoding.features
        if kind is not None:
            tables, columns = kind.tables, self.encoding.typed_features[kind.name]
        wanted = {column.name: read_kind(column) for column in columns}
        for batch in self._batches(tables, wanted):
            yield features_of(batch, columns, self.missing)

    def label_values(self) -> Iterator[np.ndarray]:
        if self.labels is not None:
            wanted = {self.labels.name: self.labels.read_kind()}
            found = self._batches(self.tables, wanted, id=str(self.columns.id))
            refusal = "is not one of the known classes"
            for batch in found:
                yield class_codes(batch, self.labels, self.encoding.classes, refusal)
            return
        wanted = dict.fromkeys(self.columns.labels, NUMBER)
        for batch in self._batches(self.tables, wanted, id=str(self.columns.id)):
            yield numbers(batch, self.columns.labels)

    def _labelled(self) -> Iterator[np.ndarray]:
        """Yield int64 chunks: the node's class if it has one; else 0 for any label, -1 for none."""
        for labels in self.label_values():
            if self.labels is not None:
                yield labels
            else:
                known = ~np.isnan(labels.reshape(labels.shape[0], -1)).all(axis=1)
                yield np.where(known, 0, -1)

    def made_split(self, nodes: Nodes) -> Iterator[np.ndarray]:
        """Yield the set of each node, chosen by the ratio or by time; adds notes to `nodes`."""
        ratio = self.options.split_ratio or (0.8, 0.1, 0.1)
        times = None if self.columns.time is None else self._times()
        yield from split_chunks(
            self._labelled(), times, ratio, self.options.seed, self.scratch, nodes.notes
        )

    def _times(self) -> Iterator[np.ndarray]:
        """Yield int64 chunks that sort in the order of the times."""
        name = str(self.columns.time)
        kind = TIME if merged_kind(self.tables, name) in (TIME, TEXT) else NUMBER
        labels = self._labelled()
        for batch in self._batches(self.tables, {name: kind}, id=str(self.columns.id)):
            array = batch.columns.get(name, pa.nulls(batch.num_rows))
            known = to_numpy(array.is_valid())
            needed = (next(labels) >= 0) & ~known
            if needed.any():
                row = int(np.argmax(needed))
                raise batch.error(name, row, "is missing, but the node has a label")
            if kind == TIME:
                yield to_numpy(array.cast(pa.int64()).fill_null(0))
                continue
            bits = to_numpy(array.cast(pa.float64()).fill_null(math.nan)).view(np.int64)
            # Floats compare like their bits as integers, if those of negative ones are flipped.
            yield bits ^ ((bits >> 63) & np.int64(0x7FFFFFFFFFFFFFFF))

    def _batches(
        self, tables: list[TableFile], kinds: dict[str, str], id: str | None = None
    ) -> Iterator[Batch]:
        return batches(tables, kinds, id, self.over)
