"""A writer of graph.h5 that appends rows with bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.storage import checks, schema
from hpcgnn.storage.checks import Place
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.fingerprint import to_hex
from hpcgnn.storage.schema import COUNT_LIMITS, DATASET, GRAPH, NAMES, Counts, exceeded
from hpcgnn.storage.write import atomic
from hpcgnn.storage.write.column_writer import ColumnWriter


class GraphWriter:
    """A new graph.h5, written by one process; the rows of every column are appended in order.

        with GraphWriter("g.h5", num_nodes=3, config={"verb": "example"}) as writer:
            writer.append_rows(counts=[1, 0, 1], indices=[2, 0])
            writer.append_labels([0, 1, -1])

    Leaving the block without an error checks that every column is complete and gives the file its
    name. After an error nothing is left, and an earlier file of that name is kept.

    Args:
        path: the file to write.
        num_nodes: N, at least 1.
        compress: gzip all datasets.
        config: how the graph was made, stored as JSON.
        num_classes, num_relations, num_types: the numbers if known; otherwise one more than the
            largest value appended.
        source: the file that errors about the data name; by default the new file itself.

    Raises:
        InputError: a value is not valid in a graph, or a column is too short or too long.
        OutputError: the file can't be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_nodes: int,
        compress: bool = False,
        config: dict | None = None,
        num_classes: int | None = None,
        num_relations: int | None = None,
        num_types: int | None = None,
        source: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.num_nodes = int(num_nodes)
        self._source = self.path if source is None else source
        if self.num_nodes < 1:
            raise self._place("num_nodes").error("a graph needs at least one node", num_nodes)
        self._compress = compress
        self._config = config or {}
        self._given = {"class": num_classes, "relation": num_relations, "type": num_types}
        for name, number in (
            ("num_nodes", self.num_nodes),
            ("num_classes", num_classes),
            ("num_relations", num_relations),
            ("num_types", num_types),
        ):
            if number is not None and not 0 <= number <= COUNT_LIMITS[name]:
                raise self._place(name).error(f"must lie in 0 .. {COUNT_LIMITS[name]}", number)
        self._largest = {"class": -1, "relation": -1, "type": -1}
        self._type_counts = np.zeros(0, np.int64)
        self._sparse_width = 0
        self._columns: dict[str, ColumnWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> GraphWriter:
        self._output = self._stack.enter_context(atomic.create(self.path))
        self._stack.push(self._finish)
        self._write("edges/indptr", np.zeros(1, np.int64))
        wide = self.num_nodes > np.iinfo(np.int32).max
        self._write("edges/indices", np.zeros(0, np.int64 if wide else np.int32))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def num_edges(self) -> int:
        return self._columns["edges/indices"].num_rows

    def append_rows(
        self,
        counts: np.ndarray,
        indices: np.ndarray,
        weight: np.ndarray | None = None,
        relation: np.ndarray | None = None,
        edge_features: np.ndarray | None = None,
        edge_labels: np.ndarray | None = None,
        edge_split: np.ndarray | None = None,
    ) -> None:
        """Append the next k nodes' in-neighbours: `counts` [k], `indices` [e], e = sum(counts).

        `weight` [e], `relation` [e], `edge_features` [e, D], `edge_labels` (as in
        `append_labels`) and `edge_split` [e] (0 .. 3) must each be given in every call or in none.
        """
        counts = self._integers("edges/indptr", counts)
        indices = self._integers("edges/indices", indices, narrow=True)
        checks.in_range(counts, 0, 1 << 62, self._place("edges/indptr"))
        if int(counts.sum()) != len(indices):
            raise self._place("edges/indices").error(
                f"the counts add up to {int(counts.sum())} edges", len(indices)
            )
        before = self.num_edges
        checks.in_range(indices, 0, self.num_nodes, self._place("edges/indices", before))
        extras = {
            "weight": weight,
            "relation": relation,
            "features": edge_features,
            "labels": edge_labels,
            "split": edge_split,
        }
        present = {name for name in extras if f"edges/{name}" in self._columns}
        given = {name for name, array in extras.items() if array is not None}
        if self._columns["edges/indptr"].num_rows > 1 and present != given:
            raise self._place("edges").error("columns must be given for all edges or none", given)
        self._write("edges/indptr", before + np.cumsum(counts))
        self._write(
            "edges/indices", indices.astype(self._columns["edges/indices"].dtype, copy=False)
        )
        if weight is not None:
            self._append_floats("edges/weight", weight, 1, len(indices))
        if edge_features is not None:
            self._append_floats("edges/features", edge_features, 2, len(indices))
        if relation is not None:
            relation = self._integers("edges/relation", relation, len(indices))
            self._note("relation", "edges/relation", relation, 0)
            self._write("edges/relation", relation.astype(np.int32))
        if edge_labels is not None:
            self._write("edges/labels", self._labels("edges/labels", edge_labels, len(indices)))
        if edge_split is not None:
            split = self._integers("edges/split", edge_split, len(indices))
            checks.in_range(split, 0, 4, self._place("edges/split", before))
            self._write("edges/split", split.astype(np.int8))

    def append_features(self, features: np.ndarray) -> None:
        """Append the next k nodes' features [k, F]: float16 stays, other numbers become float32."""
        if "nodes/features/indptr" in self._columns:
            raise self._place("nodes/features").error("must be sparse for all nodes or none")
        half = np.asarray(features).dtype == np.float16
        self._append_floats("nodes/features", features, 2, dtype="float16" if half else "float32")

    def append_sparse_features(
        self, counts: np.ndarray, indices: np.ndarray, data: np.ndarray, width: int
    ) -> None:
        """Append the next k nodes' features: `counts` [k], `indices` [nnz], `data` [nnz]."""
        group = "nodes/features"
        if group in self._columns:
            raise self._place(group).error("must be sparse for all nodes or none")
        counts = self._integers(f"{group}/indptr", counts)
        indices = self._integers(f"{group}/indices", indices)
        checks.in_range(counts, 0, 1 << 62, self._place(f"{group}/indptr"))
        if int(counts.sum()) != len(indices):
            raise self._place(f"{group}/indices").error(
                f"the counts add up to {int(counts.sum())} entries", len(indices)
            )
        if not 0 < width < 1 << 31 or self._sparse_width not in (0, width):
            raise self._place(group).error("width must be one positive number", width)
        if f"{group}/indptr" not in self._columns:
            self._write(f"{group}/indptr", np.zeros(1, np.int64))
        before = self._columns.get(f"{group}/indices")
        first = 0 if before is None else before.num_rows
        checks.in_range(indices, 0, width, self._place(f"{group}/indices", first))
        self._sparse_width = width
        self._write(f"{group}/indptr", first + np.cumsum(counts))
        self._write(f"{group}/indices", indices.astype(np.int32))
        self._append_floats(f"{group}/data", data, 1, len(indices))

    def append_labels(self, labels: np.ndarray) -> None:
        """Append integers [k] (-1: unknown), or [k, T] of 0, 1 and -1 for T labels per node.

        Floats are numbers to be predicted, [k] or [k, W], with NaN for unknown ones.
        """
        labels = self._labels("nodes/labels", labels)
        if labels.ndim == 1 and labels.dtype.kind == "i":
            self._note("class", "nodes/labels", labels, -1)
        self._write("nodes/labels", labels)

    def append_array(self, name: str, values: np.ndarray) -> None:
        """Append the next k nodes' rows of a named array: [k] or [k, W], one of `schema.TYPES`."""
        dataset = f"nodes/arrays/{name}"
        schema.check_name(name, self._place("nodes/arrays"))
        array = np.asarray(values)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype.name not in schema.TYPES or array.ndim not in (1, 2) or 0 in array.shape[1:]:
            raise self._place(dataset).error(
                f"must be [nodes] or [nodes, width] of {', '.join(schema.TYPES)}",
                f"{array.dtype} {array.shape}",
            )
        schema.check_array(array, self._place(dataset, self._rows(dataset)))
        self._write(dataset, array)

    def append_split(self, split: np.ndarray) -> None:
        """Append the next k nodes' splits, [k] or [k, S]: 0 none, 1 train, 2 valid, 3 test."""
        split = self._integers("nodes/split", split, ndim=(1, 2))
        checks.in_range(split, 0, 4, self._place("nodes/split", self._rows("nodes/split")))
        self._write("nodes/split", (split if split.ndim == 2 else split[:, None]).astype(np.int8))

    def append_types(self, types: np.ndarray) -> None:
        """Append the next k nodes' types: integers [k] from 0."""
        types = self._integers("nodes/type", types)
        self._note("type", "nodes/type", types, 0)
        counts = np.bincount(types, minlength=len(self._type_counts))
        counts[: len(self._type_counts)] += self._type_counts
        self._type_counts = counts
        self._write("nodes/type", types.astype(np.int32))

    def append_typed_features(self, kind: int, features: np.ndarray) -> None:
        """Append features of the next k nodes of type `kind`, in node order: float32 [k, F_t]."""
        self._append_floats(f"nodes/typed_features/{int(kind)}", features, 2)

    def append_original_ids(self, ids: np.ndarray) -> None:
        """Append the next k nodes' ids in the source: integers [k]."""
        self._write("nodes/original_ids", self._integers("nodes/original_ids", ids))

    def append_original_names(self, lengths: np.ndarray, data: np.ndarray) -> None:
        """Append the next k nodes' names in the source: `lengths` [k] in bytes, UTF-8 `data`."""
        lengths = self._integers(f"{NAMES}/indptr", lengths)
        checks.in_range(lengths, 0, 1 << 31, self._place(f"{NAMES}/indptr"))
        if f"{NAMES}/indptr" not in self._columns:
            self._write(f"{NAMES}/indptr", np.zeros(1, np.int64))
            self._write(f"{NAMES}/data", np.zeros(0, np.uint8))
        first = self._columns[f"{NAMES}/data"].num_rows
        if int(lengths.sum()) != len(data):
            raise self._place(f"{NAMES}/data").error(
                "the lengths don't add up to the number of bytes"
            )
        self._write(f"{NAMES}/indptr", first + np.cumsum(lengths))
        self._write(f"{NAMES}/data", np.asarray(data, np.uint8))

    def write_encoding(self, encoding: Encoding) -> None:
        """Write how tables were encoded."""
        self._write(DATASET, encoding.to_array())

    def _place(self, dataset: str, first: int = 0) -> Place:
        return Place(self._source, dataset, first)

    def _rows(self, name: str) -> int:
        return self._columns[name].num_rows if name in self._columns else 0

    def _integers(
        self,
        name: str,
        values: np.ndarray,
        length: int | None = None,
        ndim: tuple[int, ...] = (1,),
        *,
        narrow: bool = False,
    ) -> np.ndarray:
        """Return the values as int64; with `narrow`, int32 values stay int32."""
        array = np.asarray(values)
        if array.size == 0 and array.ndim in ndim:
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu" or array.ndim not in ndim:
            raise self._place(name).error("must be integers of the right shape", array.dtype.name)
        if array.dtype == np.uint64 and array.size and int(array.max()) >= 1 << 63:
            raise self._place(name).error("must fit in signed 64-bit integers", int(array.max()))
        self._check_length(name, array, length)
        return array if narrow and array.dtype == np.int32 else array.astype(np.int64, copy=False)

    def _append_floats(
        self,
        name: str,
        values: np.ndarray,
        ndim: int,
        length: int | None = None,
        dtype: str = "float32",
    ) -> None:
        array = np.asarray(values)
        if array.dtype.kind not in "fiub" or array.ndim != ndim:
            raise self._place(name).error(f"must be numbers in {ndim} dimensions", array.shape)
        self._check_length(name, array, length)
        with np.errstate(over="ignore"):
            array = array.astype(dtype, copy=False)
        checks.finite(array, self._place(name, self._rows(name)))
        self._write(name, array)

    def _labels(self, name: str, values: np.ndarray, length: int | None = None) -> np.ndarray:
        place = self._place(name, self._rows(name))
        array = np.asarray(values)
        if not len(array) and not isinstance(values, np.ndarray):  # an empty list has no type
            stored = self._columns.get(name)
            tail, dtype = (stored.tail, stored.dtype) if stored else ((), np.dtype(np.int64))
            array = np.empty((0, *tail), dtype)
        labels = schema.as_labels(array, place)
        self._check_length(name, labels, length)
        schema.check_labels(labels, place)
        return labels

    def _check_length(self, name: str, array: np.ndarray, length: int | None) -> None:
        if length is not None and len(array) != length:
            raise self._place(name).error(f"must have {length} rows", len(array))

    def _note(self, kind: str, name: str, values: np.ndarray, least: int) -> None:
        given = self._given[kind]
        top = (1 << 31) - 1 if given is None else given
        checks.in_range(values, least, top, self._place(name, self._rows(name)))
        self._largest[kind] = max(self._largest[kind], int(values.max(initial=-1)))

    def _write(self, name: str, array: np.ndarray) -> None:
        if name not in self._columns:
            self._columns[name] = ColumnWriter(
                self._output, name, array.dtype, array.shape[1:], compress=self._compress
            )
        column = self._columns[name]
        if column.dtype != array.dtype or column.tail != array.shape[1:]:
            raise self._place(name).error(
                f"rows must stay of shape {column.tail} and type {column.dtype}", array.shape[1:]
            )
        column.append(array)

    def _finish(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None:
            return False
        counts = self._counts()
        self._check_complete(counts)
        if not counts.num_classes and "nodes/labels" in self._columns and not self._values:
            self._columns.pop("nodes/labels").drop()  # all unknown: store no labels
        for column in self._columns.values():
            column.finish()
        if self._sparse_width:
            atomic.set_attribute(self._output.h5["nodes/features"], "width", self._sparse_width)
        self._output.set_attributes(
            {
                "format": GRAPH,
                "version": schema.version_of({n: c.dtype for n, c in self._columns.items()}),
                **counts.attributes(),
                "fingerprint": to_hex(sum(c.fingerprint for c in self._columns.values())),
                "config": self._config,
            }
        )
        return False

    @property
    def _values(self) -> bool:
        """Whether the labels are numbers to be predicted, not classes."""
        column = self._columns.get("nodes/labels")
        return column is not None and column.dtype.kind == "f"

    def _number(self, kind: str, name: str) -> int:
        if name not in self._columns or (kind == "class" and self._values):
            return 0
        given = self._given[kind]
        return self._largest[kind] + 1 if given is None else given

    def _counts(self) -> Counts:
        width: Callable[[str], int] = lambda name: (  # noqa: E731
            self._columns[name].tail[0] if name in self._columns else 0
        )
        labels = self._columns.get("nodes/labels")
        multilabel = labels is not None and bool(labels.tail) and not self._values
        return Counts(
            num_nodes=self.num_nodes,
            num_edges=self.num_edges,
            num_features=self._sparse_width or width("nodes/features"),
            num_classes=width("nodes/labels")
            if multilabel
            else self._number("class", "nodes/labels"),
            multilabel=int(multilabel),
            num_splits=width("nodes/split"),
            num_relations=self._number("relation", "edges/relation"),
            num_types=self._number("type", "nodes/type"),
            edge_width=width("edges/features"),
        )

    def _check_complete(self, counts: Counts) -> None:
        name = exceeded(counts.attributes())
        if name is not None:
            raise self._place(name).error(
                f"must lie in 0 .. {COUNT_LIMITS[name]}", counts.attributes()[name]
            )
        for name, column in self._columns.items():
            wanted = self.num_nodes
            if name in ("edges/indptr", "nodes/features/indptr"):
                wanted += 1
            elif name.startswith("edges/"):
                wanted = counts.num_edges
            elif name == f"{NAMES}/indptr":
                wanted += 1
            elif name in (DATASET, f"{NAMES}/data"):
                continue
            elif name.startswith("nodes/features/"):
                wanted = self._columns["nodes/features/indices"].num_rows
            elif name.startswith("nodes/typed_features/"):
                kind = int(name.rsplit("/", 1)[1])
                if kind >= counts.num_types:
                    raise self._place(name).error("there is no node of this type", kind)
                known = kind < len(self._type_counts)
                wanted = int(self._type_counts[kind]) if known else 0
            if column.num_rows != wanted:
                raise self._place(name).error(f"must have {wanted} rows", column.num_rows)
