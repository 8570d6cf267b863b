"""What an importer hands over: the edges and the columns of the nodes, in chunks."""

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
Over = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # the builtin map, or like it


@dataclass
class EdgeChunk:
    """A chunk of the edge list; `place(k)` says where in the source edge k stands."""

    source: np.ndarray  # int64 [E]
    destination: np.ndarray  # int64 [E]
    place: Callable[[int], str]
    weight: np.ndarray | None = None  # float [E]
    relation: np.ndarray | None = None  # int64 [E]
    features: np.ndarray | None = None  # float [E, D]
    labels: np.ndarray | None = None  # [E] or [E, W]
    split: np.ndarray | None = None  # integers [E]: 1 train, 2 valid, 3 test, 0 for messages alone


@dataclass
class Column:
    """One value or row of values per node; `file` and `name` are what errors speak of.

    `length`: the number of rows, where that is known.
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
    """The nodes for training, validation and testing: indices or masks by name, or codes per node.

    `masks` are the parts that must be masks, whatever their type.
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
    """Everything known about the nodes beside their number; None where nothing is.

    Attributes:
        labels_as: what the labels are: "classes" (no matrix is admitted), "one-hot", "several" or
            "values" (numbers to be predicted); None: ask where it may be one or the other.
        split_ratio, split_seed: shares of train, valid and test by which a split of the labelled
            nodes is made, in each class.
        arrays: named arrays of whatever the user keeps of the nodes.
        names: texts that the user knows the nodes by, in place of `ids`.
        notes: things the user should know, one line each.
        num_classes: known where not all of them need occur.
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
        """Take over whatever `other` has."""
        for name in ("features", "labels", "split", "types", "ids", "labels_as"):
            if getattr(other, name):
                setattr(self, name, getattr(other, name))
        if other.ids:
            self.names = other.names
        self.typed_features.update(other.typed_features)
        self.arrays.update(other.arrays)
        self.notes += other.notes


class NodeNames(Protocol):
    """Texts that ids stand for."""

    def names(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """By row of the graph: int64 lengths in bytes, and the bytes of all in a row."""


@dataclass
class Source:
    """A graph about to be read.

    Attributes:
        file: what errors speak of.
        edges: the edges from `source` to `destination`; read once.
        num_nodes: None where ids are any integers, which are then numbered in ascending order.
        num_relations: None where it is one more than the largest relation met.
        num_edges: the number announced by a header, to be compared with the number of nodes.
        rows_as_given: the ends of the edges are meant to be rows where `num_nodes` is known.
        counted: the source itself says how many nodes it has, so that it may have no edges.
        type_names: `node_types` and `edge_types` (source, relation, destination), where known.
        symmetrise, self_loops: what the format is known to need, unless the user says otherwise.
        notes: things the user should know, one line each.
        names: the texts that the ids stand for.
        encoding: what the columns of tables became; complete when all is written.
        begin: called once, with the `Scratch` to use, before anything is read.
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
    begin: Callable[[Any], None] | None = None
    counted: bool = field(init=False)

    def __post_init__(self) -> None:
        self.counted = self.num_nodes is not None
        self.notes += self.nodes.notes
        self.nodes.notes = self.notes  # one list, to which writing the nodes adds


@dataclass(frozen=True)
class ImportOptions:
    """How to read a source; what a format has no use for is ignored.

    Attributes:
        columns: source, destination and weight (triples: head, relation, tail), by number from 1
            or by name.
        skip_lines: lines of a text file to pass over; None: ask where the first may hold sizes.
        num_nodes: fixes the number of nodes; ids are then rows.
        weights: False leaves out the weights a source has.
        edge_weights, edge_labels, edge_split: columns of an edge list in .npy files.
        split_scheme: which of several folders of splits OGB's layout has.
        ogb_root: where the `ogb` package keeps its downloads.
        limit: bytes that one array may take in memory.
        leave_out: arrays of an archive to pass over.
        over: applies a function to pieces of text, maybe in other processes.
        tables: what the columns of tables are for; None where no option speaks of that.
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
    """`values` as int64, whole floats included and NaN as -1.

    Raises:
        InputError: a value is no integer, or does not fit 64 bits.
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
    exact = 2.0 ** min(53, np.finfo(values.dtype).nmant + 1)  # beyond, neighbours become equal
    bad = (whole != np.rint(whole)) | (np.abs(whole) >= exact)
    if bad.any():
        found = values[bad].flat[0]
        beyond = f" below {exact:.0f}, as {values.dtype} has no others" if found >= exact else ""
        raise column.error(f"must hold integers{beyond}", found)
    return whole.astype(np.int64)


def as_ids(values: np.ndarray, column: Column) -> np.ndarray:
    """`as_integers`, but no booleans, which are a mask or a dense matrix."""
    if values.dtype.kind == "b":
        raise column.error("must hold integers, not booleans", str(values.dtype))
    return as_integers(values, column)
