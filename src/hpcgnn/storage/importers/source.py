"""The result of an importer: edges and node columns, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.importers.table_options import TableOptions

PIECE_BYTES = 4 << 20
Over = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # like the builtin map


@dataclass
class EdgeChunk:
    """A chunk of the edge list; `place(k)` names the place of edge k in the source."""

    source: np.ndarray  # int64 [E]
    destination: np.ndarray  # int64 [E]
    place: Callable[[int], str]
    weight: np.ndarray | None = None  # float [E]
    relation: np.ndarray | None = None  # int64 [E]
    features: np.ndarray | None = None  # float [E, D]
    labels: np.ndarray | None = None  # [E] or [E, W]
    split: np.ndarray | None = None  # integers [E]: 1 train, 2 valid, 3 test, 0 messages only


@dataclass
class Column:
    """One value or row of values per node; errors name its `file` and `name`.

    `length` is the number of rows, if known.
    """

    file: Path
    name: str
    chunks: Iterator[np.ndarray]
    length: int | None = field(default=None, kw_only=True)

    def error(self, message: str, value: object = None) -> InputError:
        if isinstance(value, np.generic):
            value = value.item()
        return InputError(message, file=self.file, dataset=self.name, value=value)


@dataclass
class SparseChunk:
    """Rows of a sparse matrix: row k has the next `counts[k]` entries."""

    counts: np.ndarray  # int64 [n]
    indices: np.ndarray  # int64 [z]
    data: np.ndarray  # float [z]


@dataclass
class SparseColumn:
    """Sparse node features of `width` columns."""

    file: Path
    name: str
    width: int
    chunks: Iterator[SparseChunk]

    def error(self, message: str, value: object = None) -> InputError:
        return Column.error(self, message, value)  # type: ignore[arg-type]


@dataclass
class NodeSplit:
    """The nodes for train, valid and test: indices or masks by set name, or a code per node.

    `masks` names the parts that must be masks, whatever their dtype.
    """

    file: Path
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    masks: frozenset[str] = frozenset()
    codes: np.ndarray | None = None  # 0 none, 1 train, 2 valid, 3 test: [N] or [N, S]
    column: Column | None = None  # the same codes [N], in chunks


class NoteOn(str):
    """A note on another file than the one that errors of the `Source` speak of, or on none."""

    file: Path | None

    def __new__(cls, file: Path | None, text: str) -> NoteOn:
        note = super().__new__(cls, text)
        note.file = file
        return note


@dataclass
class Nodes:
    """All that is known about the nodes apart from their number; None for what is not known.

    Attributes:
        labels_as: what the labels are: "classes" (a matrix is refused), "one-hot", "several" or
            "values" (numbers to be predicted). None: ambiguous labels are refused.
        split_ratio, split_seed: shares of train, valid and test, and the seed, for a split of the
            labelled nodes that is made in each class.
        arrays: the user's own arrays, by name.
        names: the texts that name the nodes in the source, in place of `ids`.
        notes: one-line notes to the user.
        num_classes: the number of classes if known, as not all of them need occur.
    """

    features: Column | SparseColumn | None = None
    typed_features: dict[int, Column] = field(default_factory=dict)
    labels: Column | None = None
    split: NodeSplit | None = None
    split_ratio: tuple[float, float, float] | None = None
    split_seed: int = 0
    types: Column | None = None
    ids: Column | None = None
    labels_as: str | None = None
    num_classes: int | None = None
    arrays: dict[str, Column] = field(default_factory=dict)
    names: NodeNames | None = None
    notes: list[str] = field(default_factory=list)

    def update(self, other: Nodes) -> None:
        """Take over everything that `other` has."""
        for name in ("features", "labels", "split", "types", "ids", "labels_as"):
            if getattr(other, name):
                setattr(self, name, getattr(other, name))
        if other.ids:
            self.names = other.names
        self.typed_features.update(other.typed_features)
        self.arrays.update(other.arrays)
        self.notes += other.notes


class NodeNames(Protocol):
    """The texts that ids stand for."""

    def names(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, by row of the graph, int64 lengths in bytes and the concatenated bytes."""


@dataclass
class Source:
    """A graph that is ready to be read.

    Attributes:
        file: the file that errors name.
        edges: the edges from `source` to `destination`; can be read once.
        num_nodes: the number of nodes; None if ids are arbitrary integers, which are then numbered
            in ascending order.
        num_relations: the number of relations; None if it is one more than the largest one found.
        num_edges: the number that a header announces, to be compared with the number of nodes.
        rows_as_given: the ends of the edges are row numbers if `num_nodes` is known.
        counted: the source itself states its number of nodes, so that it may have no edges.
        type_names: `node_types` and `edge_types` (source, relation, destination), if known.
        symmetrise, self_loops: what the format is known to need, unless the user decides otherwise.
        notes: one-line notes to the user.
        names: the texts that the ids stand for.
        encoding: how the columns of tables were encoded; complete when all is written.
        lists_nodes: tables list all nodes, in the order of the rows.
        begin: called once, with the `Scratch` to use, before anything is read.
        earlier: a graph in which some of the nodes are, by their ids; their rows there are stored.
    """

    file: Path
    edges: Iterator[EdgeChunk]
    num_nodes: int | None = None
    num_relations: int | None = None
    num_edges: int | None = None
    rows_as_given: bool = False
    nodes: Nodes = field(default_factory=Nodes)
    type_names: dict[str, list] = field(default_factory=dict)
    symmetrise: bool = False
    self_loops: str = "keep"
    notes: list[str] = field(default_factory=list)
    names: NodeNames | None = None
    encoding: Encoding | None = None
    lists_nodes: bool = False
    begin: Callable[[Any], None] | None = None
    earlier: Path | None = None
    counted: bool = field(init=False)

    def __post_init__(self) -> None:
        self.counted = self.num_nodes is not None
        self.notes += self.nodes.notes
        self.nodes.notes = self.notes  # shared, since writing the nodes adds notes


@dataclass(frozen=True)
class ImportOptions:
    """How to read a source; a format ignores options that don't apply to it.

    Attributes:
        columns: source, destination and weight (triples: head, relation, tail), by number from 1
            or by name.
        skip_lines: number of lines of a text file to skip; None: a first line that may hold sizes
            is refused.
        num_nodes: fixes the number of nodes; ids are then rows.
        weights: False leaves out the weights of a source.
        edge_weights, edge_labels, edge_split: columns of an edge list in .npy files.
        split_scheme: the folder to use if OGB's layout has several folders of splits.
        ogb_root: where the `ogb` package keeps its downloads.
        limit: bytes that one array may take in memory.
        leave_out: arrays of an archive to ignore.
        over: applies a function to pieces of text, possibly in other processes.
        tables: what the columns of tables are used for; None if no option is about that.
    """

    columns: tuple[str, ...] = ()
    skip_lines: int | None = None
    num_nodes: int | None = None
    weights: bool = True
    edge_weights: Column | None = None
    edge_labels: Column | None = None
    edge_split: Column | None = None
    split_scheme: str | None = None
    ogb_root: Path = Path("dataset")
    limit: int = 1 << 30
    tables: TableOptions | None = None
    leave_out: tuple[str, ...] = ()
    over: Over = map


def as_integers(values: np.ndarray, column: Column) -> np.ndarray:
    """Return `values` as int64; floats must be whole, and NaN becomes -1.

    Raises:
        InputError: a value is not an integer, or does not fit 64 bits.
    """
    if values.dtype.kind in "ib":
        return values.astype(np.int64, copy=False)
    if values.dtype.kind == "u":
        bad = values > np.uint64(np.iinfo(np.int64).max)
        if bad.any():
            raise column.error("does not fit a signed 64-bit integer", values[bad].flat[0])
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise column.error("must hold numbers", str(values.dtype))
    whole = np.where(np.isnan(values), -1, values)
    exact = 2.0 ** min(53, np.finfo(values.dtype).nmant + 1)  # larger integers are not exact
    bad = (whole != np.rint(whole)) | (np.abs(whole) >= exact)
    if bad.any():
        found = values[bad].flat[0]
        beyond = f" below {exact:.0f}, where {values.dtype} is exact" if found >= exact else ""
        raise column.error(f"must hold integers{beyond}", found)
    return whole.astype(np.int64)


def as_ids(values: np.ndarray, column: Column) -> np.ndarray:
    """Return `as_integers`, refusing booleans, which are a mask or a dense matrix."""
    if values.dtype.kind == "b":
        raise column.error("must hold integers, not booleans", str(values.dtype))
    return as_integers(values, column)
