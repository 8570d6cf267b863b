"""The data that a model needs of a graph, and the graph's data that it does not use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from hpcgnn.errors import InputError
from hpcgnn.graph.features import SparseRows
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.models.settings import ModelSettings, no_features

EDGE_READERS = ("gat", "gatv2", "transformer", "gine", "pna", "rgat", "deeper")
RELATION_READERS = ("rgcn", "rgat")
WEIGHT_READERS = ("gcn", "appnp", "sgc", "dagnn")
_ADDS_FEATURES_FIRST = ("gin", "gine", "pna", "rgcn", "rgat", "deeper")


@dataclass(frozen=True)
class Facts:
    """The data that a graph has.

    Attributes:
        features: `dense`, `sparse`, `typed` (rows per node type) or `none`.
        labels: whether nodes have labels and splits.
        multilabel: whether nodes have several labels each.
        num_outputs: number of classes, or of labels per node.
        edge_width: features per edge; None if one rank alone can't know.
    """

    features: str
    labels: bool
    multilabel: bool
    num_outputs: int
    num_relations: int
    edge_width: int | None = None


def check_model(settings: ModelSettings, facts: Facts) -> None:
    """Check that the graph has the data that the model reads.

    Raises:
        InputError: the graph lacks some of it.
    """
    if facts.features == "none" and not settings.embedding:
        raise no_features()
    if settings.kind in RELATION_READERS and not facts.num_relations:
        raise InputError(f"--model {settings.kind} needs relations; convert the graph from triples")
    if settings.kind == "gine" and facts.edge_width == 0:
        raise InputError("--model gine needs edge features; gin does without")
    dense = facts.features != "sparse" or settings.embedding or settings.blocks != "plain"
    if settings.kind == "sage" and settings.aggr in ("max", "min") and not dense:
        raise InputError(f"--aggr {settings.aggr} needs dense features")
    if settings.labels_as_input:
        if not facts.labels or facts.multilabel or not facts.num_outputs:
            raise InputError("--labels-as-input needs one class per node and a split")
        if facts.features == "sparse" and not settings.embedding:
            raise InputError("--labels-as-input needs dense features")


def check_host_features(settings: ModelSettings, *, adversarial: bool) -> None:
    """Check that features may stay on the host when the model runs on a GPU.

    Raises:
        InputError: the model's first operation on them isn't a product with weights.
    """
    adds_first = settings.kind in _ADDS_FEATURES_FIRST or settings.aggr in ("max", "min")
    adds_first = adds_first and settings.blocks == "plain"
    if adds_first or settings.embedding or adversarial:
        raise InputError(
            "--features-on host needs a model whose first operation multiplies the features: gcn, "
            "sage (but --aggr max and min), gat, gatv2, transformer, sgc, appnp, dagnn, or --block "
            "res or res+, without --embedding and --adversarial-steps"
        )


def facts_of(graph: PartitionedGraph) -> Facts:
    """Return the data that this graph has."""
    features = "none" if graph.features is None else "dense"
    if isinstance(graph.features, SparseRows):
        features = "sparse"
    labels = graph.labels
    multilabel = labels is not None and labels.dim() == 2 and not labels.is_floating_point()
    return Facts(
        features="typed" if graph.typed_features else features,
        labels=labels is not None and graph.train_mask is not None,
        multilabel=multilabel,
        num_outputs=labels.shape[1] if labels is not None and multilabel else graph.num_classes,
        num_relations=graph.num_relations,
    )


_NAMES = {
    "weights": "edge weights",
    "edge-features": "edge features",
    "relations": "relations",
    "types": "node types",
    "features": "node features that are not by type",
}
_READERS = {
    "weights": WEIGHT_READERS,
    "edge-features": EDGE_READERS,
    "relations": RELATION_READERS,
}


@dataclass(frozen=True)
class Content:
    """The data in all parts of a graph together; `edge_width`: features per edge, 0 for none."""

    weights: bool
    edge_width: int
    relations: bool
    types: bool
    features: bool
    typed_features: bool

    def unused(self, settings: ModelSettings) -> list[str]:
        """Return the kinds of data, as named in `--ignore`, that are neither read nor ignored."""
        held = {
            "weights": self.weights,
            "edge-features": self.edge_width > 0,
            "relations": self.relations,
            # Types tell which features a node has; nothing else reads them.
            "types": self.types and not self.typed_features,
            "features": self.features and self.typed_features,
        }
        ignored = ignored_by(settings)
        return [
            kind
            for kind, there in held.items()
            if there and kind not in ignored and settings.kind not in _READERS.get(kind, ())
        ]


def content_of(graph: PartitionedGraph) -> Content:
    """Return the graph's data; collective, since a rank may have no edges or nodes."""
    blocks = graph.in_edges.blocks
    here = [
        any(block.weight is not None for block in blocks),
        edge_width(graph),
        graph.num_relations > 0,
        graph.node_types is not None,
        graph.features is not None,
        bool(graph.typed_features),
    ]
    most = graph.ring.comm.allreduce(np.array(here, np.int64), "max", where="content").tolist()
    return Content(bool(most[0]), most[1], *map(bool, most[2:]))


def has_neighbours(graph: PartitionedGraph) -> bool:
    """Return whether any node receives a message from another one; collective."""
    own = graph.in_edges.blocks[graph.in_edges.rank]
    some = own.end > own.begin
    rows = torch.arange(own.num_rows, device=own.device) if own.rows is None else own.rows
    ends = own.columns[own.begin[some]], own.columns[own.end[some] - 1]  # ascending in a row
    other = any(bool((columns - own.column_offset != rows[some]).any()) for columns in ends)
    other |= any(block.num_edges for block in graph.in_edges.blocks if block is not own)
    most: int = graph.ring.comm.allreduce(int(other), "max", where="content")
    return bool(most)


def edge_width(graph: PartitionedGraph) -> int:
    """Return the number of features per edge in this part, 0 for none. Not collective."""
    rows = [block.features for block in graph.in_edges.blocks if block.features is not None]
    return max((int(features.shape[1]) for features in rows), default=0)


def note(unused: list[str], settings: ModelSettings) -> str:
    """Return a line that names the data that is not read."""
    ignore = ",".join(sorted(ignored_by(settings) | set(unused)))
    return (
        f"note: {in_words(unused)} of the graph are not used by --model {settings.kind}; "
        f"--ignore {ignore} hides this note"
    )


def in_words(kinds: list[str]) -> str:
    """Return kinds of data, as named in `--ignore`, as a text: `edge weights and relations`."""
    *most, last = [_NAMES[kind] for kind in kinds]
    return f"{', '.join(most)} and {last}" if most else last


def ignored_by(settings: ModelSettings) -> set[str]:
    """Return the names of the data that `--ignore` lists."""
    return set() if settings.ignore == "none" else set(settings.ignore.split(","))


def check_ignored(settings: ModelSettings, *, typed_features: bool) -> None:
    """Check that the model needs none of the data that `--ignore` lists.

    Raises:
        InputError: the model needs some of this data.
    """
    ignored = ignored_by(settings)
    if "relations" in ignored and settings.kind in RELATION_READERS:
        raise InputError(f"--model {settings.kind} reads relations: leave them out of --ignore")
    if "edge-features" in ignored and settings.kind == "gine":
        raise InputError("--model gine reads edge features: leave them out of --ignore")
    if "types" in ignored and typed_features:
        raise InputError("the graph's features are by node type: leave types out of --ignore")


def leave_out(graph: PartitionedGraph, settings: ModelSettings) -> PartitionedGraph:
    """Return the graph without the data that `--ignore` lists, so that no model reads it.

    Raises:
        InputError: the model needs some of this data.
    """
    check_ignored(settings, typed_features=bool(graph.typed_features))
    ignored = ignored_by(settings)
    if not ignored:
        return graph
    in_edges = _without(graph.in_edges, ignored)
    return replace(
        graph,
        in_edges=in_edges,
        out_edges=in_edges if graph.symmetric else _without(graph.out_edges, ignored),
        num_relations=0 if "relations" in ignored else graph.num_relations,
        node_types=None if "types" in ignored else graph.node_types,
        features=None if "features" in ignored else graph.features,
    )


def _without(edges: EdgeBlocks, ignored: set[str]) -> EdgeBlocks:
    blocks = [
        replace(
            block,
            weight=None if "weights" in ignored else block.weight,
            features=None if "edge-features" in ignored else block.features,
            relation=None if "relations" in ignored else block.relation,
        )
        for block in edges.blocks
    ]
    return replace(edges, blocks=blocks)
