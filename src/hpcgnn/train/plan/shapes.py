"""The shape of the largest part, if there is no partition into that number of parts yet."""

from __future__ import annotations

from dataclasses import replace

from hpcgnn.graph.features import SparseRows
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.train.plan.estimate import Shape
from hpcgnn.train.plan.halo import by_fraction, modelled

IMBALANCE = 1.15  # nodes of the largest part over the mean


def largest_of(whole: Shape, ranks: int, halo_fraction: float | None = None) -> Shape:
    """Return the largest of `ranks` parts of a graph; its halo is that of the model in `halo`.

    Args:
        whole: the graph as one part.
        halo_fraction: halo rows per local node, instead of the model.
    """
    if halo_fraction is None:
        halo = modelled(whole.nodes, whole.degree, ranks)
    else:
        halo = by_fraction(whole.nodes, halo_fraction, ranks)
    share = 1.0 if ranks == 1 else IMBALANCE / ranks
    return replace(
        whole,
        ranks=ranks,
        nodes=max(1, round(whole.nodes * share)),
        edges=round(whole.edges * share),
        halo=halo.largest,
        volume=halo.volume,
        whole_nodes=whole.nodes,
        whole_edges=whole.edges,
        stored=None if whole.stored is None else round(whole.stored * share),
    )


def shape_of(graph: PartitionedGraph) -> Shape:
    """Return a loaded graph's shape as one part; data of other ranks is assumed to be like ours."""
    features, stored = graph.features, None
    if isinstance(features, SparseRows):
        local = max(graph.num_local_nodes, 1)
        stored = round(features.block.columns.shape[0] / local * graph.num_nodes)
    block = graph.in_edges.blocks[graph.in_edges.rank]
    edge_bytes = 4 + 4 * (block.weight is not None) + 4 * (block.relation is not None)
    edge_bytes += 0 if block.features is None else 4 * block.features.shape[1]
    outputs = graph.num_classes
    if graph.labels is not None and graph.labels.dim() == 2:
        outputs = graph.labels.shape[1]
    return Shape(
        ranks=1,
        nodes=graph.num_nodes,
        edges=graph.num_edges,
        features=0 if features is None else features.shape[1],
        outputs=outputs,
        stored=stored,
        edge_bytes=edge_bytes,
        relations=graph.num_relations,
        symmetric=graph.symmetric,
    )
