"""PyTorch Geometric's `Data` and `HeteroData` in files of `torch.save`.

A sparse `adj_t`, as made by `ToSparseTensor`, holds the edges by destination.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers import torch_files
from hpcgnn.storage.importers.arrays import MemoryArchive, MemoryArray
from hpcgnn.storage.importers.listed_ids import IDS, ListedNames, is_listed, like_ids
from hpcgnn.storage.importers.npz import LOOK_ALIKE, other_name, read_archive, set_like
from hpcgnn.storage.importers.pairs import edges_from, pair_column
from hpcgnn.storage.importers.source import Column, ImportOptions, NodeSplit, Source
from hpcgnn.storage.importers.table_options import listed
from hpcgnn.storage.importers.typed import TypedEdges, TypedNodes, join

_SETS = {"train_mask": "train", "val_mask": "valid", "test_mask": "test"}
_SIZE = ("x", "y", *_SETS)
_ADJACENCY = ("adj_t", "adj")
_SCORED = ("edge_label_index", "edge_label")
_OF_EDGES = {"edge_weight": "weight", "edge_attr": "features"}
_READ_AS = {"features": "x", "labels": "y"}


def read_pyg(path: Path, options: ImportOptions) -> Source:
    """Return the graph of a .pt file: `Data`, `HeteroData`, or the result of their `to_dict()`.

    Raises:
        InputError: the file is damaged, or holds anything else.
    """
    found = torch_files.load(path, options.limit)
    if isinstance(found, tuple | list) and found:
        # Processed data sets: the data, the start of each of many graphs, and the class.
        slices = found[1] if len(found) > 1 else None
        if slices and not _of_one(slices):
            raise InputError("holds a data set of many graphs: store one of them", file=path)
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
    store = dict(stores[None])
    notes: list[str] = []
    ids, name = _pop_ids(path, {"": store}, options, notes)[""]
    arrays, others = _arrays(path, "", store)
    if "edge_label_index" in arrays:  # pairs to be scored, none of them edges of the graph
        others += [name for name in _SCORED if arrays.pop(name, None) is not None]
    if isinstance(ids, np.ndarray):
        arrays[IDS] = ids
    source = read_archive(MemoryArchive(path, arrays, others), options)
    if isinstance(ids, list):
        source.num_nodes = len(ids) if source.num_nodes is None else source.num_nodes
        source.nodes.names = ListedNames(ids, source.num_nodes, Column(path, name, iter(())))
    elif ids is None:
        notes += _ids_note({"": store})
    source.notes += notes
    return source


def _pop_ids(
    path: Path, stores: dict[str, dict[str, Any]], options: ImportOptions, notes: list[str]
) -> dict[str, tuple[list[str] | np.ndarray | None, str]]:
    """Remove what names the nodes of each type, and return it, texts, integers or None, by type.

    Args:
        notes: receives notes to the user.

    Raises:
        InputError: --id names an array that no type has, or that is neither.
    """
    import torch

    given, found = listed(options.tables.id if options.tables else None), {}
    for name in given:
        if not any(name in store for store in stores.values()):
            raise InputError("no such array in the file, for --id", file=path, value=name)
    for kind, store in stores.items():
        name = next((name for name in given if name in store), IDS)
        value = store.pop(name, None)
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            value = torch_files.dense(value)
        numbers = isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim == 1
        if value is not None and not numbers and not is_listed(value):
            message = "ids of nodes are integers or a list of texts"
            raise InputError(message, file=path, dataset=f"{kind}.{name}" if kind else name)
        found[kind] = (list(value) if isinstance(value, tuple) else value, name)
        if name != IDS and store.pop(IDS, None) is not None:
            notes.append(
                f"{f'{kind}.' if kind else ''}{IDS} are ignored, since {name} names the nodes"
            )
    return found


def _ids_note(stores: dict[str, dict[str, Any]]) -> list[str]:
    """Return a note if arrays look like ids of the nodes, which are named by their rows."""
    like = [found[0] for kind, store in stores.items() if (found := like_ids(store, kind))]
    chosen = ",".join(dict.fromkeys(like))
    return [f"nodes are named by their rows: --id {chosen} names them by {chosen}"] if like else []


def _of_one(slices: Any) -> bool:
    """Return whether every attribute has a single range, as older releases store one graph."""
    return isinstance(slices, dict) and all(
        hasattr(places, "__len__") and len(places) == 2 for places in slices.values()
    )


def _stores(found: Any) -> dict[Any, dict[str, Any]] | None:
    """Return attributes by node or edge type; under None those of a plain graph, or global ones."""
    if not isinstance(found, dict):
        state = torch_files.attributes(found)
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
    found = store if isinstance(store, dict) else torch_files.attributes(store).get("_mapping")
    return dict(found) if isinstance(found, dict) else {}


def _arrays(
    path: Path, kind: str, store: dict[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return what can be arrays, and names of the rest; a sparse adjacency gives `edge_index`."""
    import torch

    arrays: dict[str, np.ndarray] = {}
    others = []
    for name, value in store.items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            arrays[name] = torch_files.dense(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            arrays[name] = np.array(value)
        elif name in (*_ADJACENCY, "x"):
            continue
        elif value is not None:
            others.append(f"{name} ({type(value).__name__})")
    for name in _ADJACENCY:
        if name in store and name not in arrays:
            found = torch_files.matrix(store[name], path, f"{kind}{name}")
            if found is None or "edge_index" in store:
                others.append(f"{name} ({type(store[name]).__name__})")
            else:
                arrays |= _edges(path, f"{kind}{name}", found, square=not kind)
    if "x" in store and "x" not in arrays:
        features = torch_files.matrix(store["x"], path, f"{kind}x")
        if features is None:
            others.append(f"x ({type(store['x']).__name__})")
        else:
            arrays |= _features(path, kind, features)
    return arrays, others


def _edges(
    path: Path, name: str, found: torch_files.Matrix, *, square: bool
) -> dict[str, np.ndarray]:
    """Return `edge_index` and its values; the rows of `adj_t` are the destinations."""
    rows, columns, values, shape = found
    if square and shape[0] != shape[1]:
        raise InputError("a graph is a square matrix", file=path, dataset=name, value=list(shape))
    ends = (columns, rows) if name.endswith("adj_t") else (rows, columns)
    arrays = {"edge_index": np.stack(ends)}
    if values is not None:
        arrays["edge_weight" if values.ndim == 1 else "edge_attr"] = values
    if square:
        arrays["num_nodes"] = np.array(shape[0])
    return arrays


def _features(path: Path, kind: str, found: torch_files.Matrix) -> dict[str, np.ndarray]:
    """Return sparse features as arrays; those of a node type become dense."""
    if found[2] is not None and found[2].ndim > 1:
        raise InputError("must have numbers as entries", file=path, dataset=f"{kind}x")
    rows = torch_files.compressed(found)
    if kind:
        return {"x": rows.toarray()}
    return {
        "feature_indptr": rows.indptr,
        "feature_indices": rows.indices,
        "feature_data": rows.data,
        "feature_shape": np.array(rows.shape),
    }


def _heterogeneous(
    path: Path,
    nodes: dict[str, dict[str, Any]],
    edges: dict[tuple[str, ...], dict[str, Any]],
    options: ImportOptions,
) -> Source:
    """Return a graph with the node types one after the other and a relation for each edge type."""
    others: list[str] = []
    notes: list[str] = []
    ids = _pop_ids(path, nodes, options, notes)
    notes += _ids_note({kind: store for kind, store in nodes.items() if ids[kind][0] is None})
    of_nodes: dict[str, dict[str, np.ndarray]] = {}
    of_edges: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for kind, store in nodes.items():
        of_nodes[kind], rest = _arrays(path, f"{kind}.", store)
        others += [f"{kind}.{key}" for key in rest]
    for ends, store in edges.items():
        name = "-".join(ends)
        of_edges[ends], rest = _arrays(path, f"{name}.", store)
        others += [f"{name}.{key}" for key in rest]
    left_out = _leave_out(path, of_nodes, options)
    _refuse_look_alikes(path, of_nodes)
    kinds = {name: _typed_nodes(path, name, of_nodes[name], options) for name in nodes}
    for kind, (given, name) in ids.items():
        if given is not None:
            column = Column(path, f"{kind}.{name}", iter(()))
            kinds[kind].names = ListedNames.of(given, kinds[kind].count, column)
    for name, arrays in of_nodes.items():
        others += [f"{name}.{key}" for key in arrays if key not in (*_SIZE, "num_nodes")]
    everywhere = set.intersection(*map(set, of_edges.values()))
    found = []
    for ends, arrays in of_edges.items():
        name = "-".join(ends)
        if len(ends) != 3 or "edge_index" not in arrays:
            raise InputError(
                "must be types of edges with edge_index or adj_t", file=path, dataset=str(ends)
            )
        held = {key: MemoryArray(path, f"{name}.{key}", values) for key, values in arrays.items()}
        pairs = pair_column(held.pop("edge_index"), options.limit, sources_first=True)
        columns = {}
        for key, array in held.items():
            what = _OF_EDGES.get(key)
            if what and key in everywhere and array.ndim and (options.weights or what != "weight"):
                columns[what] = array.column(options.limit)
            else:
                others.append(f"{name}.{key}")
        found.append(TypedEdges(ends, edges_from(pairs, **columns)))
    if others or left_out:
        notes.append(f"ignored: {', '.join([*others, *left_out])}")
    return join(path, kinds, found, notes=notes)


def _leave_out(
    path: Path, nodes: dict[str, dict[str, np.ndarray]], options: ImportOptions
) -> list[str]:
    """Exclude the arrays TYPE.NAME that the user names."""
    for full in options.leave_out:
        kind, _, name = full.rpartition(".")
        if name not in nodes.get(kind, {}):
            raise InputError("no such array in the file, for --leave-out", file=path, value=full)
        del nodes[kind][name]
    return list(options.leave_out)


def _refuse_look_alikes(path: Path, nodes: dict[str, dict[str, np.ndarray]]) -> None:
    """Refuse features or labels that would be ignored silently because of their name."""
    for what, pattern in LOOK_ALIKE.items():
        right = _READ_AS[what]
        if right == "y" and any(right in arrays for arrays in nodes.values()):
            continue  # only one type has labels
        for kind, arrays in nodes.items():
            for name, values in arrays.items():
                if right not in arrays and values.ndim and pattern.search(name):
                    raise InputError(
                        f"looks like {what} of the nodes: call it {right}, or use --leave-out "
                        f"{kind}.{name}",
                        file=path,
                        dataset=f"{kind}.{name}",
                        value=values.shape,
                    )
    for kind, arrays in nodes.items():
        known = {_SETS[name] for name in arrays.keys() & _SETS.keys()}
        for name in sorted(arrays.keys() - _SETS.keys()):
            part = set_like(name, arrays[name], None)
            if part is not None and part not in known:
                full = f"{kind}.{name}"
                raise InputError(other_name(part, full), file=path, dataset=full)


def _typed_nodes(
    path: Path, name: str, arrays: dict[str, np.ndarray], options: ImportOptions
) -> TypedNodes:
    columns = {
        key: MemoryArray(path, f"{name}.{key}", arrays[key]).column(options.limit)
        for key in ("x", "y")
        if key in arrays
    }
    masks = {part: arrays[key] for key, part in _SETS.items() if key in arrays}
    split = NodeSplit(path, masks, frozenset(masks)) if masks else None
    size = _size(path, name, arrays)
    return TypedNodes(size, columns.get("x"), columns.get("y"), split)


def _size(path: Path, name: str, arrays: dict[str, np.ndarray]) -> int:
    if "num_nodes" in arrays:
        found = arrays["num_nodes"]
        if found.shape or found.dtype.kind != "i" or found < 0:
            raise InputError("must be a number", file=path, dataset=f"{name}.num_nodes")
        return int(found)
    for key in _SIZE:
        if key in arrays and arrays[key].ndim:
            return int(arrays[key].shape[0])
    raise InputError("doesn't give the number of nodes: set num_nodes", file=path, dataset=name)
