"""PyTorch Geometric's `Data` and `HeteroData`, as `torch.save` stores them.

Files are loaded with `weights_only`: tensors, numbers, texts, lists and dictionaries; objects of
PyTorch Geometric become inert records, whose attributes are read. Nothing else is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import MemoryArchive, MemoryArray
from hpcgnn.storage.importers.npz import read_archive
from hpcgnn.storage.importers.opening import require
from hpcgnn.storage.importers.pairs import edges_from, pair_column
from hpcgnn.storage.importers.source import ImportOptions, NodeSplit, Source
from hpcgnn.storage.importers.typed import TypedEdges, TypedNodes, join

_CLASSES = (
    "torch_geometric.data.data.Data",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "torch_geometric.data.hetero_data.HeteroData",
    "torch_geometric.data.storage.BaseStorage",
    "torch_geometric.data.storage.GlobalStorage",
    "torch_geometric.data.storage.NodeStorage",
    "torch_geometric.data.storage.EdgeStorage",
)
_SETS = {"train_mask": "train", "val_mask": "valid", "test_mask": "test"}


class _Record:
    """An object of another library, without its methods."""


def read_pyg(path: Path, options: ImportOptions) -> Source:
    """The graph of a .pt file: `Data` or `HeteroData`, or what their `to_dict()` gives.

    Raises:
        InputError: damaged, or anything else in it.
    """
    found = _load(path, options)
    if isinstance(found, tuple | list) and found:
        # Processed data sets: the data, where each graph of many begins, and the class.
        slices = found[1] if len(found) > 1 else None
        if slices:
            raise InputError("holds a data set of many graphs: store one", file=path)
        found = found[0]
    stores = _stores(found)
    if stores is None:
        raise InputError(
            "holds no graph: store Data, HeteroData or their to_dict() with torch.save",
            file=path,
            value=type(found).__name__,
        )
    nodes = {name: store for name, store in stores.items() if isinstance(name, str)}
    edges = {name: store for name, store in stores.items() if isinstance(name, tuple)}
    if edges:
        return _heterogeneous(path, nodes, edges, options)
    arrays, others = _arrays(stores[None])
    return read_archive(MemoryArchive(path, arrays, others), options)


def _load(path: Path, options: ImportOptions) -> Any:
    import torch

    size = require(path).stat().st_size
    if 2 * size > options.limit * 8:
        raise InputError(f"takes {size} bytes, too many for --memory", file=path)
    # By name: whatever is installed, instances are records.
    records: list[Any] = [(type("Record", (_Record,), {}), name) for name in _CLASSES]
    try:
        with torch.serialization.safe_globals(records):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        text = " ".join(str(error).split())
        culprit = text.partition("GLOBAL ")[2].split(" ")[0]
        if culprit:
            raise InputError(
                "holds objects that are not loaded: store data.to_dict() with torch.save",
                file=path,
                value=culprit,
            ) from None
        raise InputError(f"can't be loaded: {text[:120]}", file=path) from None


def _stores(found: Any) -> dict[Any, dict[str, Any]] | None:
    """The attributes by type of node or edge; under None those of a plain graph, or of all."""
    if not isinstance(found, dict):
        # A record; or, where PyTorch Geometric is imported and has said that they are safe, an
        # object of its own, whose attributes are the same.
        state = getattr(found, "__dict__", {})
        stores: dict[Any, dict[str, Any]] = {}
        if "_global_store" in state:
            stores[None] = _mapping(state["_global_store"])
            for kind in ("_node_store_dict", "_edge_store_dict"):
                for name, store in (state.get(kind) or {}).items():
                    stores[name] = _mapping(store)
            return stores
        return {None: _mapping(state["_store"])} if "_store" in state else None
    if "_global_store" in found:
        stores = {k: v for k, v in found.items() if isinstance(v, dict)}
        return {None: stores.pop("_global_store", {})} | stores
    named = {k: v for k, v in found.items() if isinstance(k, str | tuple)}
    if any(isinstance(name, tuple) for name in named):
        return {None: {}} | {k: v for k, v in named.items() if isinstance(v, dict)}
    return {None: {k: v for k, v in named.items() if isinstance(k, str)}}


def _mapping(store: Any) -> dict[str, Any]:
    found = store if isinstance(store, dict) else getattr(store, "__dict__", {}).get("_mapping")
    return dict(found) if isinstance(found, dict) else {}


def _arrays(store: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """What can be arrays, and the names of the rest."""
    import torch

    arrays, others = {}, []
    for name, value in store.items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            try:
                arrays[name] = value.detach().numpy()
            except (TypeError, RuntimeError):  # bfloat16 and other types that NumPy has not
                arrays[name] = value.detach().float().numpy()
        elif isinstance(value, int) and not isinstance(value, bool):
            arrays[name] = np.array(value)
        elif value is not None:
            others.append(f"{name} ({type(value).__name__})")
    return arrays, others


def _heterogeneous(
    path: Path,
    nodes: dict[str, dict[str, Any]],
    edges: dict[tuple[str, ...], dict[str, Any]],
    options: ImportOptions,
) -> Source:
    """Types of nodes one after the other; each type of edges is a relation."""
    kinds: dict[str, TypedNodes] = {}
    others: list[str] = []
    for name, store in nodes.items():
        arrays, rest = _arrays(store)
        used = {"x", "y", "num_nodes", *_SETS} & set(arrays)
        others += [f"{name}.{key}" for key in [*arrays, *rest] if key not in used]
        columns = {
            key: MemoryArray(path, f"{name}.{key}", arrays[key]).column(options.limit)
            for key in ("x", "y")
            if key in arrays
        }
        masks = {part: arrays[key] for key, part in _SETS.items() if key in arrays}
        split = NodeSplit(path, masks, frozenset(masks)) if masks else None
        size = _size(path, name, arrays)
        kinds[name] = TypedNodes(size, columns.get("x"), columns.get("y"), split)
    found = []
    for kind, store in edges.items():
        arrays, rest = _arrays(store)
        if len(kind) != 3 or "edge_index" not in arrays:
            raise InputError("must be types of edges with edge_index", file=path, dataset=str(kind))
        others += [f"{'-'.join(kind)}.{key}" for key in [*arrays, *rest] if key != "edge_index"]
        array = MemoryArray(path, f"{'-'.join(kind)}.edge_index", arrays["edge_index"])
        pairs = pair_column(array, options.limit, sources_first=True)
        found.append(TypedEdges(kind, edges_from(pairs)))
    notes = [f"ignored: {', '.join(others)}"] if others else []
    return join(path, kinds, found, notes=notes)


def _size(path: Path, name: str, arrays: dict[str, np.ndarray]) -> int:
    if "num_nodes" in arrays:
        return int(arrays["num_nodes"])
    for key in ("x", "y", *_SETS):
        if key in arrays and arrays[key].ndim:
            return int(arrays[key].shape[0])
    raise InputError(
        "says nowhere how many nodes there are: set num_nodes", file=path, dataset=name
    )
