"""Conversion of PyTorch Geometric's `Data` and `HeteroData` to graph.h5 and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.storage.exchange.objects import (
    EDGE_NAMES,
    IDS,
    MASKS,
    NODE_NAMES,
    Form,
    array_of,
    check_labels_as,
    edges_of,
    ids_of,
    nodes_of,
    typed_nodes,
    write,
)
from hpcgnn.storage.importers.listed_ids import ListedNames, like_ids
from hpcgnn.storage.importers.npz import set_like
from hpcgnn.storage.importers.source import Column, Source
from hpcgnn.storage.importers.typed import TypedEdges, TypedNodes, join
from hpcgnn.storage.read.graph_file import GraphFile, GraphSlab
from hpcgnn.storage.read.nodes import CsrRows, NodeData
from hpcgnn.storage.schema import TYPES

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

_STRUCTURE = ("edge_index", "adj_t", "adj", "num_nodes", "num_relations", *EDGE_NAMES)
_SET_NAMES = {part: name for name, part in MASKS.items()}
_TAKEN = {*NODE_NAMES, *EDGE_NAMES, "edge_index", "num_nodes"}


def from_pyg(
    data: Data | HeteroData,
    path: str | Path,
    *,
    ids: str | Mapping[str, str] | None = None,
    labels_as: str | None = None,
    compress: bool = False,
    force: bool = False,
) -> Path:
    """Write graph.h5 from a PyTorch Geometric graph; one process, without MPI.

    `x`, `y`, `train_mask`, `val_mask`, `test_mask`, `node_type`, `edge_index` (or `adj_t`),
    `edge_weight`, `edge_attr`, `edge_type`, `edge_label` and `edge_split` (0 message only, 1 train,
    2 valid, 3 test) have datasets of their own, as does `original_ids`, numbers or a list of texts;
    other arrays with a row per node become named arrays. A note on stderr lists what can't be kept.
    The types of a `HeteroData` become node types, with features by type, and relations; only one
    node type may have labels and masks.

    Args:
        ids: name of the array or list of texts that names the nodes, which predictions then begin
            with (default: `original_ids`, or else row numbers). Nodes of several types are named
            TYPE/ID, or TYPE/ROW where a type has no such array; `{"user": "user_id"}` chooses an
            array for each type.
        labels_as: what `y` means if it is ambiguous: "classes", "one-hot", "several" or "values"
            (numbers to be predicted; the default for floats).
        compress: gzip the datasets.
        force: replace an existing graph of that name.

    Raises:
        InputError: `data` is no graph, or one that graph.h5 can't hold.
        OutputError: the file can't be written.
    """
    check_labels_as(labels_as)
    form = Form()
    if hasattr(data, "node_types") and hasattr(data, "edge_types"):
        source = _typed(data, form, labels_as, ids)
    elif hasattr(data, "edge_index") or hasattr(data, "adj_t"):
        if isinstance(ids, Mapping):
            raise InputError("ids: must be a name, as all nodes are of one type", value=ids)
        source = _plain(data, form, labels_as, ids)
    else:
        raise InputError(
            "is not a Data or HeteroData object of PyTorch Geometric", value=type(data).__name__
        )
    return write(source, path, form, "from_pyg", force=force, compress=compress)


def _plain(data: Any, form: Form, labels_as: str | None, ids: str | None) -> Source:
    file = Path("Data")
    count = int(data.num_nodes or 0)
    index, edges = _edges(data, file)
    if ids is not None and ids not in data:
        raise InputError("ids: has no array of this name", file=file, value=ids)
    arrays, notes = _node_arrays(data, count, ids or IDS)
    if ids is not None and IDS not in arrays:
        raise InputError("ids: is not an array of the nodes", file=file, value=ids)
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


def _typed(
    data: Any, form: Form, labels_as: str | None, ids: str | Mapping[str, str] | None
) -> Source:
    file = Path("HeteroData")
    nodes: dict[str, TypedNodes] = {}
    notes: list[str] = []
    meaning = labels_as
    chosen = _ids_by_type(data, ids, file)
    for name in data.node_types:
        store = data[name]
        count = int(store.num_nodes or 0)
        arrays, some = _node_arrays(store, count, chosen[name], name)
        given = arrays.pop(IDS, None)
        found = nodes_of(file, arrays, count, form, prefix=f"{name}/", labels_as=labels_as)
        meaning = found.labels_as if found.labels is not None else meaning
        notes += [f"{name}: {note}" for note in found.notes + some]
        if given is not None:
            column = Column(file, f"{name}/{chosen[name]}", iter(()))
            found.names = ListedNames.of(given, count, column)
        nodes[name] = typed_nodes(found, count)
    edges = []
    for kind in data.edge_types:
        index, arrays = _edges(data[kind], file)
        prefix = f"{'___'.join(kind)}/"
        edges.append(TypedEdges(kind, edges_of(file, index, arrays, form, prefix=prefix)))
    if not nodes:
        raise InputError("has no nodes", file=file)
    return join(file, nodes, edges, labels_as=meaning, notes=notes)


def _ids_by_type(data: Any, ids: str | Mapping[str, str] | None, file: Path) -> dict[str, str]:
    """Return for each node type the name of what names its nodes.

    Raises:
        InputError: a type does not exist, or has no such array; none has the one that all share.
    """
    if isinstance(ids, Mapping):
        for name, own in ids.items():
            if name not in data.node_types or own not in data[name]:
                raise InputError("ids: no such node type and array", file=file, value=(name, own))
        return {name: ids.get(name, IDS) for name in data.node_types}
    if ids is not None and not any(ids in data[name] for name in data.node_types):
        raise InputError("ids: no node type has an array of this name", file=file, value=ids)
    return dict.fromkeys(data.node_types, ids or IDS)


def _edges(store: Any, file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return edge_index [2, E] and the arrays of the edges."""
    arrays = {name: array_of(store[name]) for name in EDGE_NAMES if name in store}
    if "edge_label_index" in store:
        raise InputError(
            "edge_label_index names pairs that are not edges: add them to the edges, with "
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


def _node_arrays(
    store: Any, count: int, ids: str = IDS, kind: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays with a row per node; a note names the others, except those of the edges.

    Args:
        ids: name of what names the nodes, which becomes `original_ids`.
        kind: the type of the nodes, if there are several.
    """
    arrays, others, replaced, notes = {}, [], [], []
    for name in store.keys() if callable(store.keys) else store.keys:
        if name in _STRUCTURE or store[name] is None:
            continue
        if name == ids:
            arrays[IDS] = ids_of(store[name])
            if arrays[IDS] is None:
                raise InputError(f"{name}: ids of nodes are integers or a list of texts")
            continue
        if name == IDS:
            replaced.append(f"{IDS} are ignored, since {ids} names the nodes")
            continue
        array = array_of(store[name])
        known = name in ("x", "y", "train_mask", "val_mask", "test_mask", "node_type")
        if array is not None and (known or array.shape[0] == count):
            arrays[name] = array
        else:
            others.append(name)
        part = set_like(name, array, count) if isinstance(array, np.ndarray) else None
        if part is not None and name not in MASKS:
            notes.append(
                f"{name} looks like the {part} set of the nodes: {_SET_NAMES[part]} is read"
            )
    if others:
        notes.append(f"ignored, as they are not of the nodes: {', '.join(others)}")
    like = like_ids((*arrays, *others), kind)
    if like and IDS not in arrays:
        shown = repr({kind: like[0]} if kind else like[0])
        notes.append(
            f"the nodes are named by their rows: from_pyg(..., ids={shown}) takes {like[0]}"
        )
    return arrays, notes + replaced


def to_pyg(path: str | Path) -> Data | HeteroData:
    """Return the whole graph in memory; one process, without MPI.

    Edges are in the order of the file: by destination, then by source. Everything else is bitwise
    what `from_pyg` was given, except features, labels and edge columns that became float32. A
    graph with features by type, or with named types, becomes a `HeteroData`.

    Raises:
        InputError: the file is damaged, or PyTorch Geometric is not installed.
    """
    try:
        from torch_geometric.data import Data, HeteroData
    except ImportError:
        raise InputError("needs PyTorch Geometric: pip install torch-geometric") from None
    with GraphFile(path) as file:
        slab = file.read_rows(0, file.num_nodes)
        nodes = file.read_nodes(0, file.num_nodes)
        graph = _Whole(Path(path), slab, nodes, file.config)
        texts = None if file.names is None else file.names.texts(0, file.num_nodes)
    types = nodes.type
    if types is None or not (nodes.typed_features or graph.names("node_types", 1)):
        data = Data(edge_index=torch.from_numpy(graph.ends))
        data.num_nodes = len(slab.indptr) - 1
        for name, values in (graph.node_rows() | graph.edge_rows()).items():
            data[name] = graph.as_given(name, values)
        if texts is not None:
            data.original_ids = texts
        return data
    typed = HeteroData()
    kinds = graph.node_kinds(types)
    for number, kind in enumerate(kinds):
        _fill_nodes(typed[kind], graph, number, kind, types)
    for ends, name in graph.edge_kinds(types, kinds):
        _fill_edges(typed[name], graph, ends, "___".join(name), types)
    return typed


def _fill_nodes(store: Any, graph: _Whole, number: int, kind: str, types: np.ndarray) -> None:
    here = np.flatnonzero(types == number)
    store.num_nodes = len(here)
    for name, values in graph.node_rows().items():
        rows = values[here]
        known = rows == rows if rows.dtype.kind == "f" else rows >= 0
        empty = (name == "y" and not known.any()) or (name in MASKS and not rows.any())
        if name != "node_type" and not (empty and not graph.came(f"{kind}/{name}")):
            store[name] = graph.as_given(f"{kind}/{name}", rows)
    if number in graph.nodes.typed_features:
        store.x = graph.as_given(f"{kind}/x", graph.nodes.typed_features[number])


def _fill_edges(
    store: Any, graph: _Whole, edges: np.ndarray, prefix: str, types: np.ndarray
) -> None:
    place = np.empty(len(types), np.int64)
    for number in range(int(types.max(initial=-1)) + 1):
        here = np.flatnonzero(types == number)
        place[here] = np.arange(len(here))
    store.edge_index = torch.from_numpy(place[graph.ends[:, edges]])
    for name, values in graph.edge_rows().items():
        if name != "edge_type":
            store[name] = graph.as_given(f"{prefix}/{name}", values[edges])


@dataclass
class _Whole:
    """The whole contents of a graph file, and its configuration, which holds the arrays' forms."""

    path: Path
    slab: GraphSlab
    nodes: NodeData
    config: dict[str, Any]

    @property
    def ends(self) -> np.ndarray:
        """The sources and destinations of the edges: int64 [2, E]."""
        counts = np.diff(self.slab.indptr)
        return np.stack([self.slab.indices, np.repeat(np.arange(len(counts)), counts)])

    def names(self, what: str, parts: int) -> list[Any]:
        """Return the type names in the configuration; [] if invalid, as files may hold anything."""
        found = self.config.get(what)
        if not isinstance(found, list) or len(set(map(str, found))) != len(found):
            return []
        for name in found:
            listed = [name] if parts == 1 else name
            if not isinstance(listed, list) or len(listed) != parts:
                return []
            if not all(isinstance(part, str) and part for part in listed):
                return []
        return found

    def node_kinds(self, types: np.ndarray) -> list[str]:
        number = max(int(types.max(initial=-1)), *self.nodes.typed_features, 0) + 1
        named = self.names("node_types", 1)
        return named if len(named) >= number else [f"type{t}" for t in range(number)]

    def edge_kinds(
        self, types: np.ndarray, kinds: list[str]
    ) -> list[tuple[np.ndarray, tuple[str, str, str]]]:
        """Return the edges of each kind, and its name."""
        relation = self.slab.relation
        if relation is None:
            relation = np.zeros(len(self.slab.indices), np.int32)
        names = self.names("edge_types", 3)
        if relation.max(initial=-1) < len(names):
            found = []
            for number, (head, name, tail) in enumerate(names):
                edges = np.flatnonzero(relation == number)
                shown = [kinds[t] for t in np.unique(types[self.ends[0, edges]])]
                shown += [kinds[t] for t in np.unique(types[self.ends[1, edges]])]
                if {head, tail} - set(kinds) or (len(edges) and shown != [head, tail]):
                    raise InputError(
                        f"relation {number} doesn't lead from {head} to {tail}, which edge_types "
                        "requires",
                        file=self.path,
                        value=shown,
                    )
                found.append((edges, (head, name, tail)))
            return found
        ends = types[self.ends]
        keys = np.stack([relation, ends[0], ends[1]])
        distinct, which = np.unique(keys, axis=1, return_inverse=True)
        return [
            (np.flatnonzero(which.reshape(-1) == k), (kinds[head], f"relation{r}", kinds[tail]))
            for k, (r, head, tail) in enumerate(distinct.T.tolist())
        ]

    def node_rows(self) -> dict[str, Any]:
        """Return the columns of the nodes under PyTorch Geometric's names."""
        nodes, found = self.nodes, {}
        if nodes.features is not None:
            found["x"] = nodes.features
        for name, values in (
            ("y", nodes.labels),
            ("node_type", nodes.type),
            ("original_ids", nodes.original_ids),
        ):
            if values is not None:
                found[name] = values
        if nodes.split is not None:
            split = nodes.split[:, 0] if nodes.split.shape[1] == 1 else nodes.split
            found |= {name: split == code for code, name in enumerate(MASKS, start=1)}
        for name, values in nodes.named.items():
            found[f"array_{name}" if name in _TAKEN else name] = values
        return found

    def edge_rows(self) -> dict[str, np.ndarray]:
        slab = self.slab
        given = slab.weight, slab.edge_features, slab.relation, slab.edge_labels, slab.edge_split
        rows = dict(zip(EDGE_NAMES, given, strict=True))
        return {name: values for name, values in rows.items() if values is not None}

    def came(self, name: str) -> bool:
        """Return whether the configuration says that the source had an array of this name."""
        return name in self._form("dtype")

    def as_given(self, name: str, values: Any) -> Tensor:
        """Return a tensor with the dtype and number of dimensions that the array was given with."""
        if isinstance(values, CsrRows):
            parts = (values.indptr, values.indices.astype(np.int64), values.data)
            pointers, columns, data = (torch.from_numpy(part) for part in parts)
            return torch.sparse_csr_tensor(
                pointers, columns, data, values.shape, check_invariants=False
            )  # columns are in range, but may be in any order in a file
        dtype, ndim = self._form("dtype").get(name), self._form("ndim").get(name)
        if dtype in TYPES and dtype != values.dtype.name:
            values = values.astype(dtype)
        if ndim == 2 and values.ndim == 1:
            values = values[:, None]
        elif ndim == 1 and values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        return torch.from_numpy(np.ascontiguousarray(values))

    def _form(self, what: str) -> dict[str, Any]:
        form = self.config.get("form")
        found = form.get(what) if isinstance(form, dict) else None
        return found if isinstance(found, dict) else {}
