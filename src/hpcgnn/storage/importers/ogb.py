"""OGB's raw folders: raw/*.csv.gz (or raw/data.npz) and split/*/; or a name the package knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive
from hpcgnn.storage.importers.pairs import edges_from, pair_column
from hpcgnn.storage.importers.source import (
    Column,
    EdgeChunk,
    ImportOptions,
    Nodes,
    NodeSplit,
    Source,
)
from hpcgnn.storage.importers.text import Table, blocks, matrix_rows

_REVERSES = (
    "edges are taken as they are: say --symmetrise where OGB's own loader adds the reverses"
    " (ogbn-products, ogbn-proteins)"
)
_SETS = ("train", "valid", "test")
_TEXTS = ("edge", "edge-feat", "node-feat", "node-label", "num-node-list", "num-edge-list")


def read_ogb(path: Path, options: ImportOptions) -> Source:
    """The graph of a folder that has `raw/` and `split/`, or of a name such as ogbn-arxiv.

    Raises:
        InputError: no such folder or name, several graphs, node types, or a file that is damaged.
    """
    inverse = None
    if not path.exists() and path.name.startswith("ogbn-"):
        path, inverse = _by_package(path.name, options)
    raw = path / "raw"
    if not raw.is_dir():
        raise InputError("has no folder raw/: name the folder of an OGB node data set", file=path)
    if (raw / "triplet-type-list.csv.gz").exists():
        raise InputError("has several types of nodes, which is not supported", file=path)
    source = _binary(raw, options) if (raw / "data.npz").exists() else _text(raw, options)
    source.nodes.split = _split(path / "split", options)
    if source.nodes.split is None:
        source.notes.append("has no folder split/ with a split: the graph gets none")
    source.symmetrise = bool(inverse)
    if inverse is None:
        source.notes.append(_REVERSES)
    return source


def _by_package(name: str, options: ImportOptions) -> tuple[Path, bool]:
    """The folder the package has downloaded, and whether its edges miss their reverses."""
    try:
        from ogb.nodeproppred import NodePropPredDataset
    except ImportError:
        raise InputError(
            "no such folder, and no package to fetch it: pip install ogb, or name its folder",
            file=name,
        ) from None
    try:
        found = NodePropPredDataset(name=name, root=str(options.ogb_root))
    except (Exception, SystemExit) as error:  # the package exits where a name is wrong
        raise InputError(f"the ogb package can't provide it: {error}", file=name) from None
    return Path(found.root), str(found.meta_info.get("add_inverse_edge")) == "True"


def _text(raw: Path, options: ImportOptions) -> Source:
    number = _single_count(raw / "num-node-list.csv.gz")
    edges = raw / "edge.csv.gz"
    features = _if_there(raw / "edge-feat.csv.gz")
    nodes = Nodes(
        features=_if_there(raw / "node-feat.csv.gz"), labels=_if_there(raw / "node-label.csv.gz")
    )
    pairs = edges_from(Column(edges, "edges", _pairs(edges)), features=features)
    source = Source(edges, pairs, number, nodes=nodes)
    announced = raw / "num-edge-list.csv.gz"
    if announced.exists():
        source.edges = _counted(pairs, _single_count(announced), edges)
    source.notes += _left_out(raw, {f"{name}.csv.gz" for name in _TEXTS})
    return source


def _left_out(raw: Path, used: set[str]) -> list[str]:
    """A note that names the other files of the folder, if there are any."""
    others = sorted({path.name for path in raw.iterdir()} - used)
    return [f"ignored in {raw}: {', '.join(others)}"] if others else []


def _binary(raw: Path, options: ImportOptions) -> Source:
    archive = Archive(raw / "data.npz")
    found = {
        name: archive[name].column(options.limit) if name in archive else None
        for name in ("node_feat", "edge_feat")
    }
    used = {"node_feat", "edge_feat", "edge_index", "num_nodes_list", "num_edges_list"}
    notes = archive.left_out(used) + _left_out(raw, {"data.npz", "node-label.npz"})
    nodes = Nodes(features=found["node_feat"])
    if (raw / "node-label.npz").exists():
        labels = Archive(raw / "node-label.npz")
        nodes.labels = labels["node_label"].column(options.limit)
        notes += [f"{labels.path.name}: {note}" for note in labels.left_out({"node_label"})]
    pairs = pair_column(archive["edge_index"], options.limit, sources_first=True)
    edges = edges_from(pairs, features=found["edge_feat"])
    if "num_edges_list" in archive:
        edges = _counted(edges, archive.integer("num_edges_list"), archive.path)
    number = archive.integer("num_nodes_list")
    return Source(archive.path, edges, number, nodes=nodes, notes=notes)


def _if_there(path: Path) -> Column | None:
    return Column(path, "values", matrix_rows(path)) if path.exists() else None


def _pairs(path: Path) -> Iterator[np.ndarray]:
    table = Table([("source", np.int64), ("destination", np.int64)], delimiter=",")
    for block in blocks(path):
        rows = table.parse(block)
        yield np.stack([rows["source"], rows["destination"]], axis=1)


def _integers(path: Path, limit: int) -> np.ndarray:
    table = Table([("value", np.int64)], delimiter=",")
    parts: list[np.ndarray] = []
    for block in blocks(path):
        parts.append(table.parse(block)["value"])
        if sum(part.nbytes for part in parts) > limit:
            raise InputError("takes more memory than fits: raise --memory", file=path)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _single_count(path: Path) -> int:
    found = _integers(path, 1 << 20)
    if found.shape[0] != 1 or found[0] < 0:
        raise InputError("must hold one number: a data set of one graph", file=path)
    return int(found[0])


def _counted(edges: Iterator[EdgeChunk], announced: int, path: Path) -> Iterator[EdgeChunk]:
    found = 0
    for chunk in edges:
        found += chunk.source.shape[0]
        yield chunk
    if found != announced:
        raise InputError(f"num-edge-list says {announced} edges", file=path, value=found)


def _split(folder: Path, options: ImportOptions) -> NodeSplit | None:
    schemes = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not schemes:
        return None
    scheme = options.split_scheme or schemes[0]
    if scheme not in schemes or (options.split_scheme is None and len(schemes) > 1):
        raise InputError(f"choose one with --split-scheme: {', '.join(schemes)}", file=folder)
    parts = {name: _integers(folder / scheme / f"{name}.csv.gz", options.limit) for name in _SETS}
    return NodeSplit(folder / scheme, parts)
