"""Conversion of in-memory graphs, given as arrays under PyTorch Geometric's names, to graph.h5.

Node arrays: x, y, train_mask, val_mask, test_mask, node_type, original_ids (numbers or texts).
Edge arrays: edge_weight, edge_attr, edge_type, edge_label, edge_split. Other node arrays keep
their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError, warn
from hpcgnn.storage import schema
from hpcgnn.storage.importers.assemble import Treatment, assemble
from hpcgnn.storage.importers.columns import at_most_one
from hpcgnn.storage.importers.listed_ids import IDS, ListedNames, is_listed
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
NODE_NAMES = ("x", "y", *MASKS, "node_type", IDS)
_LIMIT = 1 << 30  # bytes of edges sorted at a time
_MOST_CONFIG = 48 << 10  # an HDF5 attribute holds at most 64 KiB


@dataclass
class Form:
    """Dtype and number of dimensions of each given array, so that `to_pyg` can restore them."""

    dtype: dict[str, str] = field(default_factory=dict)
    ndim: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, array: Any) -> None:
        self.dtype[name] = array.dtype.name
        self.ndim[name] = array.ndim

    def stored(self) -> dict[str, dict]:
        return {"dtype": self.dtype, "ndim": self.ndim}


def array_of(value: Any) -> Any:
    """Return a tensor, array, sparse matrix or list as NumPy array or SciPy CSR, else None."""
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
    """Return a list of texts that name nodes unchanged, and anything else as `array_of` does."""
    value = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
    return list(value) if is_listed(value) else array_of(value)


def nodes_of(
    file: Path,
    arrays: Mapping[str, Any],
    count: int,
    form: Form,
    *,
    prefix: str = "",
    labels_as: str | None = None,
) -> Nodes:
    """Return the columns of `count` nodes.

    Args:
        arrays: the arrays by name, as `array_of` returns them.
        form: records the dtype and number of dimensions of each array.
        prefix: put before the arrays' names in `form` and in errors.

    Raises:
        InputError: an array has another length, or the labels are ambiguous.
    """
    nodes = Nodes(labels_as=labels_as)
    left_out = []
    parts = {}
    for name, array in arrays.items():
        column = Column(file, f"{prefix}{name}", iter(()))
        if isinstance(array, list):
            nodes.names = ListedNames(array, count, column)
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


def typed_nodes(nodes: Nodes, count: int) -> TypedNodes:
    """Return the columns of the nodes of one type, as `TypedNodes`.

    Raises:
        InputError: the features are sparse.
    """
    if isinstance(nodes.features, SparseColumn):
        raise nodes.features.error("features by type must be dense: store x.to_dense()")
    names = nodes.names if isinstance(nodes.names, ListedNames) else None
    return TypedNodes(count, nodes.features, nodes.labels, nodes.split, nodes.arrays, names)


def edges_of(
    file: Path,
    edge_index: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    form: Form,
    *,
    prefix: str = "",
) -> Iterator[EdgeChunk]:
    """Return an iterator over edges from row 0 to row 1 of `edge_index` [2, E] and their arrays.

    Raises:
        InputError: an array has another length or is not numeric.
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
    """Write graph.h5 and print the source's notes on stderr.

    Raises:
        InputError: the source is not a valid graph, or `path` holds something that isn't replaced.
        OutputError: the file can't be written.
    """
    out = Path(path)
    check_output(out, GRAPH, force=force)
    config: dict[str, Any] = {"command": verb, "form": form.stored()}
    if len(str(config | source.type_names)) > _MOST_CONFIG:
        source.notes.append("has too many types to keep their names")
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
    """Return what labels mean: floats are values to predict, unless a matrix is ambiguous."""
    if labels_as is not None:
        return labels_as
    floats = labels.dtype.kind == "f"
    if labels.ndim == 2 and labels.shape[1] > 1:
        known = labels[~np.isnan(labels)] if floats else labels
        binary = ((known == 0) | (known == 1)).all()
        if (floats and binary) or (not floats and at_most_one(labels) and (labels == 1).any()):
            raise column.error(
                "is ambiguous: pass labels_as='several' if a node may have several labels, "
                "'one-hot' if these are classes, 'values' if they are numbers to predict"
            )
    return "values" if floats else None


def _edge_rows(name: str, array: np.ndarray, column: Column) -> np.ndarray:
    if array.dtype.kind not in "biuf" or array.ndim > 2:
        raise column.error("must be numbers, one value or one row for each edge", array.shape)
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
    """Raise InputError unless `labels_as` is a kind of labels, or None."""
    if labels_as not in (None, "classes", "one-hot", "several", "values"):
        raise InputError(
            "labels_as must be classes, one-hot, several or values", value=str(labels_as)
        )
