"""Conversion of DGL's graphs to graph.h5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.exchange.objects import (
    EDGE_NAMES,
    IDS,
    Form,
    array_of,
    check_labels_as,
    edges_of,
    nodes_of,
    typed_nodes,
    write,
)
from hpcgnn.storage.importers.listed_ids import ListedNames
from hpcgnn.storage.importers.source import Column, Source
from hpcgnn.storage.importers.typed import TypedEdges, join

_NODES = {
    "feat": "x",
    "features": "x",
    "label": "y",
    "labels": "y",
    "valid_mask": "val_mask",
    "_TYPE": "node_type",
    "_ID": "original_ids",
}
_EDGES = {
    "w": "edge_weight",
    "weight": "edge_weight",
    "feat": "edge_attr",
    "label": "edge_label",
    "split": "edge_split",
    "etype": "edge_type",
    "rel_type": "edge_type",
    "_TYPE": "edge_type",
}


def from_dgl(
    graph: Any,
    path: str | Path,
    *,
    names: Mapping[str, str] | None = None,
    labels_as: str | None = None,
    compress: bool = False,
    force: bool = False,
) -> Path:
    """Write graph.h5 from a `DGLGraph` of one or several types; one process, without MPI.

    The node data `feat`, `label`, `train_mask`, `val_mask` and `test_mask` and the edge data
    `weight`, `feat`, `etype`, `label` and `split` have datasets of their own; PyTorch Geometric's
    names are recognised too. Other data with a row per node become named arrays. `_ID` gives the
    ids of the nodes, which are named TYPE/ID or TYPE/ROW if there are several types.

    Args:
        names: a mapping from names in `ndata` and `edata` to PyTorch Geometric's, such as
            `{"venue": "y", "dist": "edge_weight"}`.
        labels_as, compress, force: see `from_pyg`.

    Raises:
        InputError: `graph` is no graph, or one that graph.h5 can't hold.
        OutputError: the file can't be written.
    """
    check_labels_as(labels_as)
    if not (hasattr(graph, "canonical_etypes") and hasattr(graph, "ntypes")):
        raise InputError("is not a DGL graph", value=type(graph).__name__)
    form, file, given = Form(), Path("DGLGraph"), dict(names or {})
    if len(graph.ntypes) == 1 and len(graph.canonical_etypes) == 1:
        count = int(graph.num_nodes())
        nodes = nodes_of(
            file, _arrays(graph.ndata, _NODES | given), count, form, labels_as=labels_as
        )
        index, arrays, left_out = _edges(graph.edges(), graph.edata, given)
        nodes.notes += left_out
        chunks = edges_of(file, index, arrays, form)
        source = Source(file, chunks, num_nodes=count, rows_as_given=True, nodes=nodes)
        return write(source, path, form, "from_dgl", force=force, compress=compress)
    kinds, notes, meaning = {}, [], labels_as
    for name in graph.ntypes:
        count = int(graph.num_nodes(name))
        arrays = _arrays(graph.nodes[name].data, _NODES | given)
        ids = arrays.pop(IDS, None)
        found = nodes_of(file, arrays, count, form, prefix=f"{name}/", labels_as=labels_as)
        meaning = found.labels_as if found.labels is not None else meaning
        notes += [f"{name}: {note}" for note in found.notes]
        if ids is not None:
            column = Column(file, f"{name}/{IDS}", iter(()))
            found.names = ListedNames.of(ids, count, column)
        kinds[name] = typed_nodes(found, count)
    edges = []
    for kind in graph.canonical_etypes:
        index, arrays, left_out = _edges(graph.edges(etype=kind), graph.edges[kind].data, given)
        prefix = "___".join(kind)
        notes += [f"{prefix}: {note}" for note in left_out]
        edges.append(TypedEdges(kind, edges_of(file, index, arrays, form, prefix=f"{prefix}/")))
    source = join(file, kinds, edges, labels_as=meaning, notes=notes)
    return write(source, path, form, "from_dgl", force=force, compress=compress)


def _arrays(frame: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name in frame:
        known = names.get(name, name)
        if known in arrays:
            raise InputError(f"two arrays of the nodes are both {known}", value=name)
        arrays[known] = array_of(frame[name])
    return arrays


def _edges(
    ends: tuple[Any, Any], frame: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[np.ndarray, dict[str, Any], list[str]]:
    index = np.stack([array_of(side) for side in ends])
    arrays = {(_EDGES | dict(names)).get(name, name): array_of(frame[name]) for name in frame}
    left_out = sorted(arrays.keys() - {*EDGE_NAMES, "_ID"})
    notes = [f"ignored of the edges: {', '.join(left_out)}"] if left_out else []
    return index, {name: arrays[name] for name in EDGE_NAMES if name in arrays}, notes
