"""PyTorch Geometric's `Data` and `HeteroData`, as `torch.save` stores them.

Files are loaded with `weights_only`: tensors, numbers, texts, lists and dictionaries; objects of
PyTorch Geometric become inert records, whose attributes are read. Nothing else is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.encoding import Encoding
from hpcgnn.storage.importers.memory import MemoryArchive
from hpcgnn.storage.importers.npz import read_archive
from hpcgnn.storage.importers.source import ImportOptions, Source
from hpcgnn.storage.importers.text import require

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
_SETS = ("train_mask", "val_mask", "test_mask")


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
    parts = {name: _arrays(store)[0] for name, store in nodes.items()}
    sizes = {name: _size(path, name, arrays) for name, arrays in parts.items()}
    first = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
    total = sum(sizes.values())
    out: dict[str, np.ndarray] = {"num_nodes": np.array(total)}
    others: list[str] = []
    out["type"] = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    for kind, (name, arrays) in enumerate(parts.items()):
        here = slice(first[name], first[name] + sizes[name])
        for key, values in arrays.items():
            if key == "x":
                out[f"typed_features_{kind}"] = values
            elif key == "y" and values.ndim == 1 and values.dtype.kind in "iu":
                out.setdefault("labels", np.full(total, -1, np.int64))[here] = values
            elif key in _SETS:
                out.setdefault(key, np.zeros(total, bool))[here] = values.astype(bool)
            elif key != "num_nodes":
                others.append(f"{name}.{key}")
    pairs, relations = [], []
    for number, (kind_of, store) in enumerate(edges.items()):
        arrays, _ = _arrays(store)
        if len(kind_of) != 3 or "edge_index" not in arrays:
            raise InputError(
                "must be types of edges with edge_index", file=path, dataset=str(kind_of)
            )
        source, _, target = kind_of
        pair = arrays["edge_index"]
        if pair.ndim != 2 or pair.shape[0] != 2 or not {source, target} <= set(first):
            raise InputError(
                "edge_index must have shape [2, E]",
                file=path,
                dataset=str(kind_of),
                value=pair.shape,
            )
        for row, end in zip(pair, (source, target), strict=True):
            if row.size and not 0 <= row.min() <= row.max() < sizes[end]:
                raise InputError(
                    f"edge_index: {end} are numbered 0 .. {sizes[end] - 1}",
                    file=path,
                    dataset=str(kind_of),
                    value=int(row.max()),
                )
        pairs.append(np.stack([pair[0] + first[source], pair[1] + first[target]]))
        relations.append(np.full(pair.shape[1], number))
        others += [f"{'-'.join(kind_of)}.{key}" for key in arrays if key != "edge_index"]
    out["edge_index"] = np.concatenate(pairs, axis=1)
    out["relation"] = np.concatenate(relations)
    out["num_relations"] = np.array(len(edges))
    read = read_archive(MemoryArchive(path, out, others), options)
    read.encoding = Encoding(relations=[" ".join(name) for name in edges])
    named = ", ".join(f"{name} {first[name]} .. {first[name] + sizes[name] - 1}" for name in sizes)
    read.notes.append(f"nodes are numbered by type: {named}")
    return read


def _size(path: Path, name: str, arrays: dict[str, np.ndarray]) -> int:
    if "num_nodes" in arrays:
        return int(arrays["num_nodes"])
    for key in ("x", "y", *_SETS):
        if key in arrays and arrays[key].ndim:
            return int(arrays[key].shape[0])
    raise InputError(
        "says nowhere how many nodes there are: set num_nodes", file=path, dataset=name
    )
