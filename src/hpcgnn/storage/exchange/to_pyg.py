"""graph.h5 as a `Data` or `HeteroData` of PyTorch Geometric."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.storage.exchange.objects import EDGE_NAMES, MASKS, NODE_NAMES
from hpcgnn.storage.named import TYPES
from hpcgnn.storage.read.graph_file import GraphFile, GraphSlab
from hpcgnn.storage.read.nodes import CsrRows, NodeData

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

_TAKEN = {*NODE_NAMES, *EDGE_NAMES, "edge_index", "num_nodes"}


def to_pyg(path: str | Path) -> Data | HeteroData:
    """The whole graph in memory; one process, without MPI.

    Edges come in the order of the file: by destination, then by source. All else is, to the bit,
    what `from_pyg` was given, but for features, labels and edge columns that became float32. A
    graph with features by type, or with named types, is a `HeteroData`.

    Raises:
        InputError: a damaged file, or no PyTorch Geometric.
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
    """All of a file, with what its configuration says of how it came."""

    path: Path
    slab: GraphSlab
    nodes: NodeData
    config: dict[str, Any]

    @property
    def ends(self) -> np.ndarray:
        """Sources and destinations: int64 [2, E]."""
        counts = np.diff(self.slab.indptr)
        return np.stack([self.slab.indices, np.repeat(np.arange(len(counts)), counts)])

    def names(self, what: str, parts: int) -> list[Any]:
        """The names of types in the configuration, or none: it is anything a file may say."""
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
        """The edges of each kind, and its name."""
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
                        f"relation {number} doesn't lead from {head} to {tail}, as edge_types says",
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
        """Columns of the nodes under PyTorch Geometric's names."""
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
        columns = (
            *(slab.weight, slab.edge_features, slab.relation),
            *(slab.edge_labels, slab.edge_split),
        )
        return {
            name: values
            for name, values in zip(EDGE_NAMES, columns, strict=True)
            if values is not None
        }

    def came(self, name: str) -> bool:
        """Whether the configuration says that there was an array of this name."""
        return name in self._form("dtype")

    def as_given(self, name: str, values: Any) -> Tensor:
        """A tensor of the type and number of dimensions that the array came with."""
        if isinstance(values, CsrRows):
            parts = (values.indptr, values.indices.astype(np.int64), values.data)
            pointers, columns, data = (torch.from_numpy(part) for part in parts)
            return torch.sparse_csr_tensor(
                pointers, columns, data, values.shape, check_invariants=False
            )  # in range, but a file may list columns in any order
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
