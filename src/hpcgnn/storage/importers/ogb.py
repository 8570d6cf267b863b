"""OGB's raw folders: raw/*.csv.gz (or raw/data.npz) and split/*/; or a name the package knows."""

from __future__ import annotations

from pathlib import Path

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive
from hpcgnn.storage.importers.ogb_files import (
    SETS,
    counted,
    edge_pairs,
    if_there,
    integers,
    single_count,
    split_scheme,
)
from hpcgnn.storage.importers.ogb_types import LIST, read_ogb_types
from hpcgnn.storage.importers.pairs import edges_from, pair_column
from hpcgnn.storage.importers.source import (
    Column,
    ImportOptions,
    Nodes,
    NodeSplit,
    Source,
)

_REVERSES = (
    "edges are taken as they are: say --symmetrise where OGB's own loader adds the reverses"
    " (ogbn-products, ogbn-proteins)"
)
_TEXTS = ("edge", "edge-feat", "node-feat", "node-label", "num-node-list", "num-edge-list")


def read_ogb(path: Path, options: ImportOptions) -> Source:
    """The graph of a folder that has `raw/` and `split/`, or of a name such as ogbn-arxiv.

    Raises:
        InputError: no such folder or name, several graphs, or a file that is damaged.
    """
    inverse = None
    if not path.exists() and path.name.startswith("ogbn-"):
        path, inverse = _by_package(path.name, options)
    raw = path / "raw"
    if not raw.is_dir():
        raise InputError("has no folder raw/: name the folder of an OGB node data set", file=path)
    if (raw / LIST).exists():
        return read_ogb_types(path, options)
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
        edges = counted(edges, archive.integer("num_edges_list"), archive.path)
    number = archive.integer("num_nodes_list")
    return Source(archive.path, edges, number, nodes=nodes, notes=notes)


def _split(folder: Path, options: ImportOptions) -> NodeSplit | None:
    scheme = split_scheme(folder, options)
    if scheme is None:
        return None
    parts = {name: integers(scheme / f"{name}.csv.gz", options.limit) for name in SETS}
    return NodeSplit(scheme, parts)
