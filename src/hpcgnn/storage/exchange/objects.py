"""Graphs in memory, given as arrays under PyTorch Geometric's names, on their way to graph.h5.

Nodes: x, y, train_mask, val_mask, test_mask, node_type, original_ids (numbers or texts).
Edges: edge_weight, edge_attr, edge_type, edge_label, edge_split. Other arrays of the nodes keep
their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError, warn
from hpcgnn.storage import schema
from hpcgnn.storage.importers.assemble import Treatment, assemble
from hpcgnn.storage.importers.columns import at_most_one
from hpcgnn.storage.importers.source import (
    Column,
    EdgeChunk,
    Nodes,
    NodeSplit,
    Source,
    SparseChunk,
    SparseColumn,
    as_integers,
)
from hpcgnn.storage.importers.typed import TypedNodes
from hpcgnn.storage.schema import GRAPH
from hpcgnn.storage.write.atomic import check_output

MASKS = {"train_mask": "train", "val_mask": "valid", "test_mask": "test"}
EDGE_NAMES = ("edge_weight", "edge_attr", "edge_type", "edge_label", "edge_split")
NODE_NAMES = ("x", "y", *MASKS, "node_type", "original_ids")
_LIMIT = 1 << 30  # bytes of edges sorted at a time
_MOST_CONFIG = 48 << 10  # an attribute of HDF5 takes 64 KiB


@dataclass
class Form:
    """How arrays came: dtype and number of dimensions by name, so that they go back like that."""

    dtype: dict[str, str] = field(default_factory=dict)
    ndim: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, array: Any) -> None:
        self.dtype[name] = array.dtype.name
        self.ndim[name] = array.ndim

    def stored(self) -> dict[str, dict]:
        return {"dtype": self.dtype, "ndim": self.ndim}


def array_of(value: Any) -> Any:
    """A tensor, array, sparse matrix or list of numbers as NumPy array or SciPy CSR; else None."""
    import scipy.sparse
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.layout in (torch.sparse_coo, torch.sparse_csc, torch.sparse_csr):
            value = value.to_sparse_csr()
            parts = (value.values(), value.col_indices(), value.crow_indices())
            return scipy.sparse.csr_array(tuple(p.numpy() for p in parts), shape=value.shape)
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if scipy.sparse.issparse(value):
        return scipy.sparse.csr_array(value)
    if hasattr(value, "csr") and hasattr(value, "sparse_sizes"):  # SparseTensor of torch-sparse
        pointers, columns, values = value.csr()
        values = torch.ones(len(columns)) if values is None else values
        parts = (values.cpu().numpy(), columns.cpu().numpy(), pointers.cpu().numpy())
        return scipy.sparse.csr_array(parts, shape=tuple(value.sparse_sizes()))
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "biuf" and array.ndim else None


def ids_of(value: Any) -> Any:
    """A list of the texts that name nodes, or else what `array_of` makes of ids."""
    value = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
    texts = isinstance(value, list | tuple) and any(isinstance(text, str) for text in value)
    return list(value) if texts else array_of(value)


def nodes_of(
    file: Path,
    arrays: Mapping[str, Any],
    count: int,
    form: Form,
    *,
    prefix: str = "",
    labels_as: str | None = None,
) -> Nodes:
    """The columns of `count` nodes.

    Args:
        arrays: by name, as `array_of` gives them.
        form: notes how they came.
        prefix: of the names there and in errors.

    Raises:
        InputError: an array of another length, or labels that may mean two things.
    """
    nodes = Nodes(labels_as=labels_as)
    left_out = []
    parts = {}
    for name, array in arrays.items():
        column = Column(file, f"{prefix}{name}", iter(()))
        if isinstance(array, list):
            nodes.names = _Texts(array, count, column)
            continue
        if array is None or not array.ndim:
            left_out.append(column.name)
            continue
        if array.shape[0] != count:
            raise column.error(f"must have a row for each of {count} nodes", array.shape)
        form.note(column.name, array)
        if name == "x":
            nodes.features = _features(column, array)
        elif name in MASKS:
            parts[MASKS[name]] = array
        elif not isinstance(array, np.ndarray):
            left_out.append(column.name)
        elif name == "y":
            nodes.labels_as = _meaning(array, labels_as, column)
            nodes.labels = Column(file, column.name, iter([array]))
        elif name in ("node_type", "original_ids"):
            setattr(
                nodes,
                {"node_type": "types", "original_ids": "ids"}[name],
                Column(file, column.name, iter([array])),
            )
        elif array.dtype.name in schema.TYPES and array.ndim <= 2 and array.size:
            nodes.arrays[name] = Column(file, column.name, iter([array]))
        else:
            left_out.append(column.name)
    if parts:
        nodes.split = NodeSplit(file, parts, frozenset(parts))
    if left_out:
        nodes.notes.append(f"ignored: {', '.join(sorted(left_out))}")
    return nodes


class _Texts:
    """Names of nodes from a list in memory.

    Raises:
        InputError: not `count` texts, each once.
    """

    def __init__(self, texts: list[Any], count: int, column: Column) -> None:
        wrong = next((text for text in texts if not isinstance(text, str) or not text), None)
        if len(texts) != count or wrong is not None:
            raise column.error(f"must be {count} texts, none of them empty", wrong)
        if len(set(texts)) < count:
            ((again, _),) = Counter(texts).most_common(1)
            raise column.error("names two nodes alike", again)
        self._texts, self._column = texts, column

    def names(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        try:
            encoded = [text.encode() for text in self._texts]
        except UnicodeEncodeError as error:
            raise self._column.error("holds a text that is no UTF-8", str(error.object)) from None
        lengths = np.array([len(text) for text in encoded], np.int64)
        yield lengths, np.frombuffer(b"".join(encoded), np.uint8)


def typed_nodes(nodes: Nodes, count: int) -> TypedNodes:
    """The same of one type of nodes.

    Raises:
        InputError: sparse features.
    """
    if isinstance(nodes.features, SparseColumn):
        raise nodes.features.error("features by type must be dense: store x.to_dense()")
    return TypedNodes(count, nodes.features, nodes.labels, nodes.split, nodes.arrays)


def edges_of(
    file: Path,
    edge_index: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    form: Form,
    *,
    prefix: str = "",
) -> Iterator[EdgeChunk]:
    """Edges from row 0 to row 1 of `edge_index` [2, E], with arrays of as many rows.

    Raises:
        InputError: arrays of another length or kind.
    """
    column = Column(file, f"{prefix}edge_index", iter(()))
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype.kind not in "iu":
        raise column.error("must be integers of shape [2, E]", edge_index.shape)
    ends = as_integers(edge_index, column)
    found: dict[str, np.ndarray] = {}
    for name in EDGE_NAMES:
        array = arrays.get(name)
        if array is None:
            continue
        column = Column(file, f"{prefix}{name}", iter(()))
        if not isinstance(array, np.ndarray) or array.shape[:1] != (ends.shape[1],):
            raise column.error(f"must have a row for each of {ends.shape[1]} edges", array.shape)
        form.note(column.name, array)
        found[name] = _edge_rows(name, array, column)
    chunk = EdgeChunk(
        ends[0],
        ends[1],
        lambda k: f"{prefix}edge {k}",
        weight=found.get("edge_weight"),
        relation=found.get("edge_type"),
        features=found.get("edge_attr"),
        labels=found.get("edge_label"),
        split=found.get("edge_split"),
    )
    return iter([chunk])


def write(
    source: Source, path: str | Path, form: Form, verb: str, *, force: bool, compress: bool
) -> Path:
    """Write graph.h5; notes go to stderr.

    Raises:
        InputError: no graph, or something lies there that isn't replaced.
        OutputError: it can't be written.
    """
    out = Path(path)
    check_output(out, GRAPH, force=force)
    config: dict[str, Any] = {"command": verb, "form": form.stored()}
    if len(str(config | source.type_names)) > _MOST_CONFIG:
        source.notes.append("has so many types that their names are left out")
        config, source.type_names = {"command": verb}, {}
    treatment = Treatment(trust_num_nodes=True, compress=compress)
    assemble(source, out, treatment, limit=_LIMIT, config=config)
    for note in source.notes:
        warn(f"hpcgnn: note: {source.file}: {note}")
    return out


def _features(column: Column, array: Any) -> Column | SparseColumn:
    if isinstance(array, np.ndarray):
        return Column(column.file, column.name, iter([array]))
    array.sum_duplicates()
    chunk = SparseChunk(np.diff(array.indptr), array.indices.astype(np.int64), array.data)
    return SparseColumn(column.file, column.name, array.shape[1], iter([chunk]))


def _meaning(labels: np.ndarray, labels_as: str | None, column: Column) -> str | None:
    """Floats are numbers to be predicted, unless a matrix of them may be something else."""
    if labels_as is not None:
        return labels_as
    floats = labels.dtype.kind == "f"
    if labels.ndim == 2 and labels.shape[1] > 1:
        known = labels[~np.isnan(labels)] if floats else labels
        binary = ((known == 0) | (known == 1)).all()
        if (floats and binary) or (not floats and at_most_one(labels) and (labels == 1).any()):
            raise column.error(
                "may be several things: say labels_as='several' if a node may have several labels, "
                "'one-hot' if these are classes, 'values' if numbers are to be predicted"
            )
    return "values" if floats else None


def _edge_rows(name: str, array: np.ndarray, column: Column) -> np.ndarray:
    if array.dtype.kind not in "biuf" or array.ndim > 2:
        raise column.error("must be numbers, one or a row of them for each edge", array.shape)
    if name == "edge_attr":
        return array if array.ndim == 2 else array[:, None]
    if name == "edge_label":
        return array
    if array.ndim == 2:
        if array.shape[1] != 1:
            raise column.error("must be one number for each edge", array.shape)
        array = array[:, 0]
    return array if name == "edge_weight" else as_integers(array, column)


def check_labels_as(labels_as: str | None) -> None:
    if labels_as not in (None, "classes", "one-hot", "several", "values"):
        raise InputError(
            "labels_as must be classes, one-hot, several or values", value=str(labels_as)
        )
