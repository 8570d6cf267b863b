"""Tables of several types of nodes and edges, seen as tables of one type.

The ids of each type are its own: they are preceded by the type, as in paper/17, so that ids of
all types can be told apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpcgnn.errors import InputError
from hpcgnn.storage.encoding import EncodedColumn
from hpcgnn.storage.importers.cells import INTEGER, TEXT
from hpcgnn.storage.importers.names import NameStore
from hpcgnn.storage.importers.source import ImportOptions, Over
from hpcgnn.storage.importers.spool import Scratch
from hpcgnn.storage.importers.table_batches import Batch
from hpcgnn.storage.importers.table_edges import usual_ends
from hpcgnn.storage.importers.table_features import expand, require_columns
from hpcgnn.storage.importers.table_files import TableFile
from hpcgnn.storage.importers.table_nodes import usual_id
from hpcgnn.storage.importers.table_options import TableOptions, listed
from hpcgnn.storage.importers.table_values import are_text, integers, null

SOURCE, TARGET, ID, RELATION, WEIGHT = "source", "target", "id", "relation", "weight"
MASKS = ("train_mask", "val_mask", "test_mask")
EdgeType = tuple[str, ...]  # type of the sources, relation, type of the targets


@dataclass
class Described:
    """The tables of an entry of meta.yaml, and its keys."""

    tables: list[TableFile]
    keys: dict[str, Any]


@dataclass
class NodeType:
    """A type of nodes.

    Attributes:
        name: its name.
        tables: its tables, with all columns.
        patterns: the columns of its features, or patterns of these.
        labelled: it is the type whose labels and split are read.
        plan: how its columns become features.
        count: the number of its nodes, known once their ids have been read.
    """

    name: str
    tables: list[TableFile] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    labelled: bool = False
    plan: list[EncodedColumn] = field(default_factory=list)
    count: int = 0

    def visible(self) -> list[TableFile]:
        """Return the tables with the columns that all types share: those with labels, or ids."""
        if self.labelled:
            return self.tables
        return [t.only_ids() if isinstance(t, TypedTable) else t for t in self.tables]

    def columns(self) -> list[str]:
        """Return the columns of the features.

        Raises:
            InputError: a table lacks one.
        """
        if not self.patterns:
            return []
        names = expand(self.patterns, self.tables[0], {ID})
        for table in self.tables:
            require_columns(table, names)
        return names


@dataclass
class Typed:
    """All tables of a graph of several types, ready for the reading of tables of one type."""

    edges: list[TableFile]
    types: list[NodeType]
    options: TableOptions
    import_options: ImportOptions
    relations: dict[str, list[str]]  # the three names of each, by its own name
    notes: list[str]


@dataclass
class _Ids:
    """A column of ids of one type; `kind` is how it is read."""

    column: str
    type: str
    kind: str = TEXT


class TypedTable:
    """A table whose columns are named by purpose, and whose ids are preceded by their type.

    Args:
        ids: the columns of ids by purpose: "source" and "target", or "id".
        renamed: other columns by the name that they get.
        relation: the text that a column named relation holds in every row; None: no such column.
    """

    def __init__(
        self,
        table: TableFile,
        ids: dict[str, _Ids],
        renamed: dict[str, str] | None = None,
        relation: str | None = None,
    ) -> None:
        self._table, self._ids, self._renamed = table, ids, renamed or {}
        self._relation = relation
        self.path, self.num_rows = table.path, table.num_rows
        self.folder = getattr(table, "folder", None)
        self.folder_keys = getattr(table, "folder_keys", [])
        chosen = [*(one.column for one in ids.values()), *self._renamed.values()]
        require_columns(table, chosen)
        if len(set(chosen)) != len(chosen):
            raise InputError("a column is chosen for two purposes", file=table.path, value=chosen)
        others = [name for name in table.names if name not in chosen]
        named = [*ids, *self._renamed, *([] if relation is None else [RELATION])]
        for name in set(named) & set(others):
            raise InputError(
                f"has another column {name} beside the one that meta.yaml chooses: rename it",
                file=table.path,
            )
        self.with_commas = {name for name in others if name in getattr(table, "with_commas", ())}
        self.names = [*named, *others]
        self.kinds = {name: table.kinds[name] for name in others} | dict.fromkeys(named, TEXT)
        self.kinds |= {new: table.kinds[old] for new, old in self._renamed.items()}

    def only_ids(self) -> TypedTable:
        """Return the same table without any other column."""
        out = TypedTable(self._table, self._ids)
        out.names = list(self._ids)
        return out

    def is_canonical(self, name: str) -> bool:
        own = name in self._ids or name == RELATION
        return own or self._table.is_canonical(self._renamed.get(name, name))

    def batches(self, kinds: dict[str, str], over: Over = map) -> Iterator[Batch]:
        inner: dict[str, str] = {}
        for name, kind in kinds.items():
            if name in self._ids:
                inner[self._ids[name].column] = self._ids[name].kind
            elif name != RELATION or self._relation is None:
                inner[self._renamed.get(name, name)] = kind
        if not inner:
            first = next(iter(self._ids.values()))
            inner = {first.column: first.kind}
        for batch in self._table.batches(inner, over):
            columns = {name: self._column(name, batch) for name in kinds}
            yield Batch(batch.file, columns, batch.num_rows, batch.place)

    def _column(self, name: str, batch: Batch) -> pa.Array:
        if name in self._ids:
            return _prefixed(batch, self._ids[name])
        if name == RELATION and self._relation is not None:
            return pa.repeat(pa.scalar(self._relation), batch.num_rows)
        return batch.columns[self._renamed.get(name, name)]


def _prefixed(batch: Batch, ids: _Ids) -> pa.Array:
    array = batch.columns[ids.column]
    if array.null_count:
        raise null(batch, ids.column)
    if ids.kind == INTEGER:
        array = pa.array(integers(batch, ids.column))
    prefix = pa.scalar(f"{ids.type}/", pa.string())
    return pc.binary_join_element_wise(prefix, array.cast(pa.string()), "")


class FoundNodes:
    """The nodes of a type without a table: the distinct ids at the ends of edges.

    Args:
        ends: tables of edges, and which of their columns hold nodes of the type.
        limit: bytes of hashes held in memory.
    """

    def __init__(self, ends: list[tuple[TableFile, str]], limit: int) -> None:
        self.path = ends[0][0].path
        self.names = [ID]
        self.kinds = {ID: TEXT}
        self.num_rows: int | None = None
        self._ends = ends
        self._store = NameStore(self.path, limit)

    def begin(self, scratch: Scratch, over: Over) -> None:
        """Read the edges; to be called once, before `batches`."""
        self._store.begin(scratch)
        for table, purpose in self._ends:
            for batch in table.batches({purpose: TEXT}, over):
                self._store.add(batch.columns[purpose])

    def is_canonical(self, name: str) -> bool:
        return True

    def batches(self, kinds: dict[str, str], over: Over = map) -> Iterator[Batch]:
        for lengths, data in self._store.names():
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
            array = pa.Array.from_buffers(pa.large_string(), len(lengths), buffers)
            columns = {ID: array.cast(pa.string())} if kinds else {}
            yield Batch(self.path, columns, len(lengths), lambda k: "an edge")


def typed_tables(
    meta: Path,
    edges: list[Described],
    nodes: list[Described],
    chosen: TableOptions,
    options: ImportOptions,
) -> Typed:
    """Return the tables of all types under common names; types without a table come last.

    Args:
        meta: the file that errors name.

    Raises:
        InputError: a column is missing, or labels are given for several types.
    """
    _refuse_options(meta, chosen)
    like = chosen.like
    etypes = [tuple(one.keys["etype"]) for one in edges]
    relations = _relation_names(meta, etypes, None if like is None else like.edge_types)
    ids = _IdKinds(chosen.text_ids)
    of_edges = [_edge_tables(one, relations, ids) for one in edges]
    types = {name: NodeType(name) for name in (like.node_types if like else [])}
    for one in nodes:
        kind = types.setdefault(one.keys["ntype"], NodeType(one.keys["ntype"]))
        kind.tables += [_node_table(table, one, ids) for table in one.tables]
        kind.patterns += [p for p in one.keys.get("features", []) if p not in kind.patterns]
    notes = _add_found(types, edges, of_edges, options.limit)
    ids.decide()
    if like is not None:
        for name in types:
            _known(meta, name, like.node_types, "type of nodes")
    chosen = _label(meta, nodes, types, chosen)
    tables: list[TableFile] = [table for some in of_edges for table in some]
    lacking = next((table for table in tables if WEIGHT not in table.names), None)
    if lacking is not None and any("weight" in one.keys for one in edges):
        text = "has no weights, but another relation has: name them everywhere, or nowhere"
        raise InputError(text, file=lacking.path)
    if not chosen.edge_features and all("feat" in table.names for table in tables):
        chosen = replace(chosen, edge_features=("feat",))
    return Typed(
        tables,
        list(types.values()),
        replace(chosen, source=SOURCE, target=TARGET, relation=RELATION, id=ID),
        replace(options, weights=options.weights and lacking is None),
        dict(zip(relations.values(), map(list, relations), strict=True)),
        notes,
    )


def _refuse_options(meta: Path, chosen: TableOptions) -> None:
    """Raise InputError if an option names a column that differs from table to table."""
    for name in ("source", "target", "relation", "weight", "id", "features"):
        if getattr(chosen, name):
            raise InputError(
                f"--{name} is for tables of one type: name the columns of each table here",
                file=meta,
            )


def _known(meta: Path, name: object, known: Collection[object], what: str) -> None:
    if name not in known:
        shown = "-".join(name) if isinstance(name, tuple) else name
        raise InputError(f"is no {what} of the graph of --like", file=meta, value=shown)


def _relation_names(
    meta: Path, etypes: list[EdgeType], like: list[list[str]] | None
) -> dict[EdgeType, str]:
    """Return the name of each relation: that of the user, with both types if several share it."""
    if like is not None:
        for etype in etypes:
            _known(meta, etype, list(map(tuple, like)), "type of edges")
        etypes = [(one[0], one[1], one[2]) for one in like]
    distinct = list(dict.fromkeys(etypes))
    shared = Counter(relation for _, relation, _ in distinct)
    return {etype: etype[1] if shared[etype[1]] == 1 else "-".join(etype) for etype in distinct}


class _IdKinds:
    """The columns of ids, by type: all of a type are read as numbers, or all as text."""

    def __init__(self, text: bool) -> None:
        self._text = text
        self._columns: dict[str, list[tuple[TableFile, _Ids]]] = {}

    def of(self, table: TableFile, column: str, type: str) -> _Ids:
        ids = _Ids(column, type)
        require_columns(table, [column])
        self._columns.setdefault(type, []).append((table, ids))
        return ids

    def decide(self) -> None:
        """Set how each column is read.

        Raises:
            InputError: a column can't hold ids.
        """
        for columns in self._columns.values():
            text = are_text([(table, ids.column) for table, ids in columns]) or self._text
            for _, ids in columns:
                ids.kind = TEXT if text else INTEGER


def _edge_tables(one: Described, relations: dict[EdgeType, str], ids: _IdKinds) -> list[TypedTable]:
    etype = tuple(one.keys["etype"])
    out = []
    for table in one.tables:
        usual = usual_ends(table.names) or (None, None)
        ends = {}
        for purpose, type, name in ((SOURCE, etype[0], usual[0]), (TARGET, etype[2], usual[1])):
            column = one.keys.get(purpose) or name
            if column is None:
                raise _unnamed(table, purpose)
            ends[purpose] = ids.of(table, column, type)
        weight = one.keys.get("weight") or ("weight" if "weight" in table.names else None)
        renamed = {} if weight is None else {WEIGHT: weight}
        out.append(TypedTable(table, ends, renamed, relations[etype]))
    return out


def _node_table(table: TableFile, one: Described, ids: _IdKinds) -> TypedTable:
    column = one.keys.get(ID) or usual_id(table.names)
    if column is None:
        raise _unnamed(table, ID)
    return TypedTable(table, {ID: ids.of(table, column, one.keys["ntype"])})


def _unnamed(table: TableFile, purpose: str) -> InputError:
    known = ", ".join(table.names[:40])
    return InputError(
        f"has columns {known}: choose one by {purpose}: COLUMN in meta.yaml", file=table.path
    )


def _add_found(
    types: dict[str, NodeType],
    edges: list[Described],
    of_edges: list[list[TypedTable]],
    limit: int,
) -> list[str]:
    """Add the types that have no table of nodes; return a note on these."""
    ends: dict[str, list[tuple[TableFile, str]]] = {}
    for one, tables in zip(edges, of_edges, strict=True):
        for purpose, place in ((SOURCE, 0), (TARGET, 2)):
            name = one.keys["etype"][place]
            ends.setdefault(name, []).extend((table, purpose) for table in tables)
    found = [name for name in ends if name not in types or not types[name].tables]
    for name in found:
        types.setdefault(name, NodeType(name)).tables = [FoundNodes(ends[name], limit)]
    if not found:
        return []
    text = f"no table of nodes of type {', '.join(found)}: these are the ends of their edges"
    return [text]


def _label(
    meta: Path, nodes: list[Described], types: dict[str, NodeType], chosen: TableOptions
) -> TableOptions:
    """Mark the type with labels; return the options with its label and masks.

    Raises:
        InputError: there are several such types.
    """
    named = {one.keys["ntype"]: one.keys["label"] for one in nodes if "label" in one.keys}
    wanted = chosen.label if chosen.label or named else chosen.choice("label")
    only = None if chosen.label else chosen.choice("label_type")
    if wanted is not None:
        named = {
            one.keys["ntype"]: wanted
            for one in nodes
            if only in (None, one.keys["ntype"])
            and any(name in table.names for table in one.tables for name in listed(wanted))
        }
    if len(named) > 1:
        raise InputError(
            "labels for several types of nodes, but only one is trained on: name its column by "
            "label: COLUMN, and rename or leave out the others",
            file=meta,
            value=", ".join(named),
        )
    for name, column in named.items():
        types[name].labelled = True
        names = types[name].tables[0].names
        split = chosen.split_column or (",".join(MASKS) if set(MASKS) <= set(names) else None)
        return replace(chosen, label=column, split_column=split)
    if chosen.label is not None:
        require_columns(types[next(iter(types))].tables[0], listed(chosen.label))
    return chosen
