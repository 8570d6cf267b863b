"""OGB's raw folders, raw/*.csv.gz (or raw/data.npz) and split/*/, or data sets by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive
from hpcgnn.storage.importers.opening import open_binary
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
from hpcgnn.storage.importers.typed import EdgeType, TypedEdges, TypedNodes, join

SETS = ("train", "valid", "test")
LIST = "triplet-type-list.csv.gz"
_MOST_BYTES = 1 << 22
_NAME = re.compile(r"[^/\\\0]+")
_INVERSE = (
    "edges are directed, as from OGB's loader: --inverse-relations adds the reverse of each "
    "relation; without it, node types that are never a target receive no messages"
)
_REVERSES = (
    "edges are read as they are: use --symmetrise where OGB's own loader adds the reverses "
    "(ogbn-products, ogbn-proteins)"
)
_TEXTS = ("edge", "edge-feat", "node-feat", "node-label", "num-node-list", "num-edge-list")


def if_there(path: Path) -> Column | None:
    """Return the values of a file, None if it doesn't exist."""
    return Column(path, "values", matrix_rows(path)) if path.exists() else None


def edge_pairs(path: Path) -> Iterator[np.ndarray]:
    """Yield int64 chunks `[n, 2]` of sources and destinations."""
    table = Table([("source", np.int64), ("destination", np.int64)], delimiter=",")
    for block in blocks(path):
        rows = table.parse(block)
        yield np.stack([rows["source"], rows["destination"]], axis=1)


def integers(path: Path, limit: int) -> np.ndarray:
    table = Table([("value", np.int64)], delimiter=",")
    parts: list[np.ndarray] = []
    for block in blocks(path):
        parts.append(table.parse(block)["value"])
        if sum(part.nbytes for part in parts) > limit:
            raise InputError("takes more memory than is allowed: raise --memory", file=path)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def single_count(path: Path) -> int:
    found = integers(path, 1 << 20)
    if found.shape[0] != 1 or found[0] < 0:
        raise InputError("must hold one number: a data set of one graph", file=path)
    return int(found[0])


def counted(edges: Iterator[EdgeChunk], announced: int, path: Path) -> Iterator[EdgeChunk]:
    found = 0
    for chunk in edges:
        found += chunk.source.shape[0]
        yield chunk
    if found != announced:
        raise InputError(f"num-edge-list says {announced} edges", file=path, value=found)


def split_scheme(folder: Path, options: ImportOptions) -> Path | None:
    """Return the folder of the chosen split, or None if there is no split."""
    schemes = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not schemes:
        return None
    scheme = options.split_scheme or schemes[0]
    if scheme not in schemes or (options.split_scheme is None and len(schemes) > 1):
        raise InputError(f"choose one with --split-scheme: {', '.join(schemes)}", file=folder)
    return folder / scheme


def read_ogb_types(path: Path, options: ImportOptions) -> Source:
    """Return a graph with types, which are ordered by name as in OGB's loader.

    Raises:
        InputError: a file is missing or damaged, or several types have labels.
    """
    raw = path / "raw"
    counts = _counts(raw / "num-node-dict.csv.gz")
    nodes = {}
    labelled = _chosen(raw / "nodetype-has-label.csv.gz", counts)
    for name in sorted(counts):
        nodes[name] = TypedNodes(
            counts[name], features=if_there(raw / "node-feat" / name / "node-feat.csv.gz")
        )
        if name in labelled:
            labels = raw / "node-label" / name / "node-label.csv.gz"
            nodes[name].labels = Column(labels, "values", _need(labels).chunks)
    scheme = split_scheme(path / "split", options)
    for name in _chosen(scheme / "nodetype-has-split.csv.gz", counts) if scheme else []:
        folder = scheme / name  # type: ignore[operator]
        parts = {part: integers(folder / f"{part}.csv.gz", options.limit) for part in SETS}
        nodes[name].split = NodeSplit(folder, parts)
    edges = [_edges(raw / "relations", name) for name in sorted(_triples(raw / LIST))]
    notes = [_INVERSE, *_left_out_of_types(raw)]
    if scheme is None:
        notes.append("has no folder split/ with a split: the graph gets none")
    return join(raw, nodes, edges, notes=notes)


def _edges(folder: Path, name: EdgeType) -> TypedEdges:
    place = folder / "___".join(name)
    file = place / "edge.csv.gz"
    chunks = edges_from(
        Column(file, "edges", edge_pairs(file)), features=if_there(place / "edge-feat.csv.gz")
    )
    announced = place / "num-edge-list.csv.gz"
    if announced.exists():
        chunks = counted(chunks, single_count(announced), file)
    return TypedEdges(name, chunks)


def _need(path: Path) -> Column:
    found = if_there(path)
    if found is None:
        raise InputError("no such file", file=path)
    return found


def _lines(path: Path) -> list[list[str]]:
    """Return the fields of each line of a small text file."""
    with open_binary(path) as file:
        text = file.read(_MOST_BYTES)
        if file.read(1):
            raise InputError(
                f"has more than {_MOST_BYTES} bytes, so it is not a list of types", file=path
            )
    lines = text.decode("utf-8", "replace").splitlines()
    return [[word.strip().strip('"') for word in line.split(",")] for line in lines if line.strip()]


def _table(path: Path) -> dict[str, str]:
    """Return a line of names and a line of values as a dictionary."""
    rows = _lines(path)
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or len(set(rows[0])) != len(rows[0]):
        raise InputError("must hold a line of types and a line of one value for each", file=path)
    for name in rows[0]:
        _check_name(name, path)
    return dict(zip(*rows, strict=True))


def _counts(path: Path) -> dict[str, int]:
    table = _table(path)
    for name, value in table.items():
        if not (value.isascii() and value.isdecimal() and len(value) < 16):
            raise InputError(f"the number of nodes of {name} must be one", file=path, value=value)
    return {name: int(value) for name, value in table.items()}


def _chosen(path: Path, counts: dict[str, int]) -> list[str]:
    """Return the types for which the file says True."""
    table = _table(path)
    for name in table:
        if name not in counts:
            raise InputError("there is no node type of this name", file=path, value=name)
    return [name for name, value in table.items() if value.lower() in ("true", "1")]


def _triples(path: Path) -> list[EdgeType]:
    found: list[EdgeType] = []
    for row in _lines(path):
        if len(row) != 3:
            raise InputError("must hold lines of source, relation, destination", file=path)
        for name in row:
            _check_name(name, path)
        found.append((row[0], row[1], row[2]))
    if not found:
        raise InputError("lists no type of edges", file=path)
    if len(set(found)) != len(found):
        raise InputError("lists a type of edges twice", file=path)
    return found


def _check_name(name: str, path: Path) -> None:
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise InputError("is not the name of a type", file=path, value=name[:80])


def _left_out_of_types(raw: Path) -> list[str]:
    used = {"node-feat.csv.gz", "edge.csv.gz", "edge-feat.csv.gz", "num-edge-list.csv.gz"}
    folders = (raw / "node-feat", raw / "relations")
    others = {file.name for folder in folders for file in folder.glob("*/*") if file.is_file()}
    return [f"ignored: {', '.join(sorted(others - used))}"] if others - used else []


def read_ogb(path: Path, options: ImportOptions) -> Source:
    """Return the graph of a folder with `raw/` and `split/`, or of a name such as ogbn-arxiv.

    Raises:
        InputError: there is no such folder or name, there are several graphs, or a file is damaged.
    """
    inverse = None
    if not path.exists() and path.name.startswith("ogbn-"):
        path, inverse = _by_package(path.name, options)
    raw = path / "raw"
    if not raw.is_dir():
        raise InputError("has no folder raw/: name the folder of an OGB node data set", file=path)
    if (raw / LIST).exists():
        return read_ogb_types(path, options)
    source = _binary(raw, options) if (raw / "data.npz").exists() else _text(raw)
    source.nodes.split = _split(path / "split", options)
    if source.nodes.split is None:
        source.notes.append("has no folder split/ with a split: the graph gets none")
    source.symmetrise = bool(inverse)
    if inverse is None:
        source.notes.append(_REVERSES)
    return source


def _by_package(name: str, options: ImportOptions) -> tuple[Path, bool]:
    """Return the folder that the package downloaded, and whether its edges lack their reverses."""
    try:
        from ogb.nodeproppred import NodePropPredDataset
    except ImportError:
        raise InputError(
            "no such folder, and no package to fetch it: pip install ogb, or name its folder",
            file=name,
        ) from None
    try:
        found = NodePropPredDataset(name=name, root=str(options.ogb_root))
    except (Exception, SystemExit) as error:  # the package exits if a name is wrong
        raise InputError(f"the ogb package can't provide it: {error}", file=name) from None
    return Path(found.root), str(found.meta_info.get("add_inverse_edge")) == "True"


def _text(raw: Path) -> Source:
    number = single_count(raw / "num-node-list.csv.gz")
    edges = raw / "edge.csv.gz"
    features = if_there(raw / "edge-feat.csv.gz")
    nodes = Nodes(
        features=if_there(raw / "node-feat.csv.gz"), labels=if_there(raw / "node-label.csv.gz")
    )
    pairs = edges_from(Column(edges, "edges", edge_pairs(edges)), features=features)
    source = Source(edges, pairs, number, nodes=nodes)
    announced = raw / "num-edge-list.csv.gz"
    if announced.exists():
        source.edges = counted(pairs, single_count(announced), edges)
    source.notes += _left_out(raw, {f"{name}.csv.gz" for name in _TEXTS})
    return source


def _left_out(raw: Path, used: set[str]) -> list[str]:
    """Return a note that lists the other files of the folder, if there are any."""
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
        edges = counted(edges, archive.integer("num_edges_list"), archive.path)
    number = archive.integer("num_nodes_list")
    return Source(archive.path, edges, number, nodes=nodes, notes=notes)


def _split(folder: Path, options: ImportOptions) -> NodeSplit | None:
    scheme = split_scheme(folder, options)
    if scheme is None:
        return None
    parts = {name: integers(scheme / f"{name}.csv.gz", options.limit) for name in SETS}
    return NodeSplit(scheme, parts)
