"""From settings and a graph to one convolution after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.demands import EDGE_READERS, RELATION_READERS, edge_width
from hpcgnn.models.settings import ModelSettings
from hpcgnn.models.stack import ConvFactory

_PNA = (["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"])


def convolution(settings: ModelSettings, graph: PartitionedGraph) -> ConvFactory:
    """`make(in, out, layer)`; attention heads are averaged where the output is read off.

    Collective.

    Raises:
        InputError: the graph lacks what the layer needs.
    """
    kind = settings.kind
    edge_dim: int | None = None
    if kind in EDGE_READERS:  # a rank without edges learns the width from others
        width = graph.comm.allreduce(edge_width(graph), "max", where="edge features")
        edge_dim = width or None
    if kind == "gine" and edge_dim is None:
        raise InputError("--model gine needs edge features; gin does without")
    if kind in RELATION_READERS and not graph.num_relations:
        raise InputError(f"--model {kind} needs relations; convert the graph from triples")
    aggr: dict[str, Any] = {} if settings.aggr == "auto" else {"aggr": settings.aggr}
    bases = settings.bases or None

    def attention(make: Callable[..., torch.nn.Module]) -> ConvFactory:
        """`make(in, channels, heads, ...)`."""

        def made(a: int, b: int, layer: int) -> torch.nn.Module:
            last = settings.head == "conv" and layer == settings.layers
            heads = (settings.output_heads or settings.heads) if last else settings.heads
            return make(
                a, b if last else b // heads, heads=heads, concat=not last,
                dropout=settings.attention_dropout, edge_dim=edge_dim, layer=layer,
            )  # fmt: skip

        return made

    def isomorphism(a: int, b: int, layer: int) -> torch.nn.Module:
        mlp = torch.nn.Sequential(nn.Linear(a, b), torch.nn.ReLU(), nn.Linear(b, b))
        if kind == "gine":
            return nn.GINEConv(mlp, train_eps=True, edge_dim=edge_dim, **aggr)
        return nn.GINConv(mlp, train_eps=True, **aggr)

    def relational_attention(a: int, b: int, **options: object) -> torch.nn.Module:
        return nn.RGATConv(a, b, graph.num_relations, num_bases=bases, **options)  # type: ignore[arg-type]

    def general(a: int, b: int, layer: int) -> torch.nn.Module:
        norm = {"batch": "batch", "layer": "layer"}.get(settings.norm)
        return nn.GENConv(a, b, norm=norm, edge_dim=edge_dim, **aggr)

    def principal(a: int, b: int, layer: int) -> torch.nn.Module:
        return nn.PNAConv(a, b, *_PNA, nn.PNAConv.get_degree_histogram(graph), edge_dim=edge_dim)

    makers: dict[str, ConvFactory] = {
        "gcn": lambda a, b, layer: nn.GCNConv(a, b),
        "sage": lambda a, b, layer: nn.SAGEConv(a, b, **aggr),
        "gat": attention(nn.GATConv),
        "gatv2": attention(nn.GATv2Conv),
        "transformer": attention(nn.TransformerConv),
        "gin": isomorphism,
        "gine": isomorphism,
        "pna": principal,
        "rgcn": lambda a, b, layer: nn.RGCNConv(a, b, graph.num_relations, bases, **aggr),
        "rgat": attention(relational_attention),
        "deeper": general,
        "sgc": lambda a, b, layer: nn.SGConv(a, b, settings.power),
        "appnp": lambda a, b, layer: nn.Pointwise(a, b),
        "dagnn": lambda a, b, layer: nn.Pointwise(a, b),
    }
    return makers[kind]
