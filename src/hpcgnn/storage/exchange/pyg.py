"""PyTorch Geometric's `Data` and `HeteroData`, to graph.h5 and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.exchange.objects import (
    EDGE_NAMES,
    Form,
    array_of,
    check_labels_as,
    edges_of,
    ids_of,
    nodes_of,
    typed_nodes,
    write,
)
from hpcgnn.storage.importers.source import Source
from hpcgnn.storage.importers.typed import TypedEdges, TypedNodes, join

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

_STRUCTURE = ("edge_index", "adj_t", "adj", "num_nodes", "num_relations", *EDGE_NAMES)


def from_pyg(
    data: Data | HeteroData,
    path: str | Path,
    *,
    labels_as: str | None = None,
    compress: bool = False,
    force: bool = False,
) -> Path:
    """Write graph.h5 from a graph of PyTorch Geometric; one process, without MPI.

    `x`, `y`, `train_mask`, `val_mask`, `test_mask`, `node_type`, `edge_index` (or `adj_t`),
    `edge_weight`, `edge_attr`, `edge_type`, `edge_label` and `edge_split` (0 message only, 1 train,
    2 valid, 3 test) have a place of their own, and `original_ids`, numbers or a list of texts;
    other rows of the nodes become named arrays. What can't be kept is named on stderr. The types of
    a `HeteroData` become node types with features by type, and relations; one type of nodes may
    have labels and masks.

    Args:
        labels_as: what `y` is where it may be several things: "classes", "one-hot", "several" or
            "values" (to be predicted; what floats are taken for).
        compress: gzip the datasets.
        force: replace a former graph of that name.

    Raises:
        InputError: no graph, or one that graph.h5 can't hold.
        OutputError: the file can't be written.
    """
    check_labels_as(labels_as)
    form = Form()
    if hasattr(data, "node_types") and hasattr(data, "edge_types"):
        source = _typed(data, form, labels_as)
    elif hasattr(data, "edge_index") or hasattr(data, "adj_t"):
        source = _plain(data, form, labels_as)
    else:
        raise InputError("is no Data or HeteroData of PyTorch Geometric", value=type(data).__name__)
    return write(source, path, form, "from_pyg", force=force, compress=compress)


def _plain(data: Any, form: Form, labels_as: str | None) -> Source:
    file = Path("Data")
    count = int(data.num_nodes or 0)
    index, edges = _edges(data, file)
    arrays, notes = _node_arrays(data, count, index.shape[-1])
    nodes = nodes_of(file, arrays, count, form, labels_as=labels_as)
    nodes.notes += notes
    relations = data.num_relations if "num_relations" in data else None
    chunks = edges_of(file, index, edges, form)
    return Source(
        file,
        chunks,
        num_nodes=count,
        num_relations=None if relations is None else int(relations),
        rows_as_given=True,
        nodes=nodes,
    )


def _typed(data: Any, form: Form, labels_as: str | None) -> Source:
    file = Path("HeteroData")
    nodes: dict[str, TypedNodes] = {}
    notes: list[str] = []
    meaning = labels_as
    for name in data.node_types:
        store = data[name]
        count = int(store.num_nodes or 0)
        arrays, some = _node_arrays(store, count, None)
        found = nodes_of(file, arrays, count, form, prefix=f"{name}/", labels_as=labels_as)
        meaning = found.labels_as if found.labels is not None else meaning
        notes += [f"{name}: {note}" for note in found.notes + some]
        if found.ids or found.names:
            notes.append(
                f"{name}: ignored: original_ids, as nodes of several types are named TYPE/ROW"
            )
        nodes[name] = typed_nodes(found, count)
    edges = []
    for kind in data.edge_types:
        index, arrays = _edges(data[kind], file)
        prefix = f"{'___'.join(kind)}/"
        edges.append(TypedEdges(kind, edges_of(file, index, arrays, form, prefix=prefix)))
    if not nodes:
        raise InputError("has no nodes", file=file)
    return join(file, nodes, edges, labels_as=meaning, notes=notes)


def _edges(store: Any, file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """edge_index [2, E] and the arrays of the edges."""
    arrays = {name: array_of(store[name]) for name in EDGE_NAMES if name in store}
    if "edge_label_index" in store:
        raise InputError(
            "edge_label_index names pairs beside the edges: put them among the edges, with "
            "edge_label and edge_split for each edge",
            file=file,
        )
    if "edge_index" in store and store["edge_index"] is not None:
        return np.asarray(array_of(store["edge_index"])), arrays
    if "adj_t" not in store:
        raise InputError("has neither edge_index nor adj_t", file=file)
    matrix = array_of(store["adj_t"]).tocoo()
    if not (matrix.data == 1).all():
        arrays["edge_weight"] = matrix.data
    return np.stack([matrix.col, matrix.row]).astype(np.int64), arrays


def _node_arrays(store: Any, count: int, num_edges: int | None) -> tuple[dict[str, Any], list[str]]:
    """What has a row for each node; a note names the rest, but for what belongs to the edges."""
    arrays, others = {}, []
    for name in store.keys() if callable(store.keys) else store.keys:
        if name in _STRUCTURE or store[name] is None:
            continue
        array = ids_of(store[name]) if name == "original_ids" else array_of(store[name])
        if isinstance(array, list):
            arrays[name] = array
            continue
        known = name in ("x", "y", "train_mask", "val_mask", "test_mask", "node_type")
        if array is not None and (known or array.shape[0] == count):
            arrays[name] = array
        else:
            others.append(name)
    return arrays, [f"ignored, as they are not of the nodes: {', '.join(others)}"] if others else []
