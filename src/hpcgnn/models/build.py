"""Construction of a model, and of its convolutions, from settings and a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.demands import EDGE_READERS, RELATION_READERS, edge_width
from hpcgnn.models.inputs import EmbeddingInput, FeatureInput, LabelInput, TypedInput
from hpcgnn.models.settings import ModelSettings
from hpcgnn.models.stack import ConvFactory, DeepStack, Flow, Stack, enter
from hpcgnn.nn.layer import hops_of
from hpcgnn.nn.linear import NodeFeatures

_PNA = (["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"])


def convolution(settings: ModelSettings, graph: PartitionedGraph) -> ConvFactory:
    """Return `make(in, out, layer)`, which makes a convolution.

    Attention heads are averaged in the layer that gives the output. Collective.

    Raises:
        InputError: the graph lacks data that the layer needs.
    """
    kind, edge_dim = settings.kind, _edge_width(settings.kind, graph)
    aggr: dict[str, Any] = {} if settings.aggr == "auto" else {"aggr": settings.aggr}
    bases = settings.bases or None

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
        with torch.device(graph.node_ids.device):  # even if the model is made on `meta`
            degrees = nn.PNAConv.get_degree_histogram(graph)
        return nn.PNAConv(a, b, *_PNA, degrees, edge_dim=edge_dim)

    makers: dict[str, ConvFactory] = {
        "gcn": lambda a, b, layer: nn.GCNConv(a, b),
        "sage": lambda a, b, layer: nn.SAGEConv(a, b, **aggr),
        "gat": _attention(settings, edge_dim, nn.GATConv),
        "gatv2": _attention(settings, edge_dim, nn.GATv2Conv),
        "transformer": _attention(settings, edge_dim, nn.TransformerConv),
        "gin": isomorphism,
        "gine": isomorphism,
        "pna": principal,
        "rgcn": lambda a, b, layer: nn.RGCNConv(a, b, graph.num_relations, bases, **aggr),
        "rgat": _attention(settings, edge_dim, relational_attention),
        "deeper": general,
        "sgc": lambda a, b, layer: nn.SGConv(a, b, settings.power),
        "appnp": lambda a, b, layer: nn.Pointwise(a, b),
        "dagnn": lambda a, b, layer: nn.Pointwise(a, b),
    }
    return makers[kind]


def _edge_width(kind: str, graph: PartitionedGraph) -> int | None:
    """Return the width of edge features, None if the layer doesn't read them; collective.

    Raises:
        InputError: the graph lacks data that the layer needs.
    """
    edge_dim: int | None = None
    if kind in EDGE_READERS:  # a rank without edges gets the width from others
        width = graph.comm.allreduce(edge_width(graph), "max", where="edge features")
        edge_dim = width or None
    if kind == "gine" and edge_dim is None:
        raise InputError("--model gine needs edge features; gin does without")
    if kind in RELATION_READERS and not graph.num_relations:
        raise InputError(f"--model {kind} needs relations; convert the graph from triples")
    return edge_dim


def _attention(
    settings: ModelSettings, edge_dim: int | None, make: Callable[..., torch.nn.Module]
) -> ConvFactory:
    """Return a factory of `make(in, channels, heads, ...)`; the output layer averages its heads."""

    def made(a: int, b: int, layer: int) -> torch.nn.Module:
        last = settings.head == "conv" and layer == settings.layers
        heads = (settings.output_heads or settings.heads) if last else settings.heads
        return make(
            a,
            b if last else b // heads,
            heads=heads,
            concat=not last,
            dropout=settings.attention_dropout,
            edge_dim=edge_dim,
            layer=layer,
        )

    return made


class Model(torch.nn.Module):
    """A model: input, a stack of convolutions, and for some kinds propagation steps after them."""

    def __init__(
        self,
        inputs: torch.nn.Module,
        stack: Stack | DeepStack,
        after: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.inputs, self.stack, self.after = inputs, stack, after

    def forward(
        self,
        graph: PartitionedGraph,
        x: NodeFeatures | None = None,
        flow: Flow | None = None,
    ) -> Tensor:
        """Return the logits `[n, outputs]`, with `flow` those of its targets.

        Args:
            x: replaces the input, if it was perturbed.
            flow: one step per entry of `hops()`.
        """
        x = self.inputs(graph) if x is None else x
        logits: Tensor = self.stack(graph, x, flow)
        if self.after is None:
            return logits
        step = flow[-1] if flow else None
        logits = self.after(*enter(step, graph, logits))
        return logits if step is None else logits[step.leave]

    def hops(self) -> list[int | None]:
        """Return the hops of each convolution, and of the propagation after them, if any."""
        return self.stack.hops() + ([] if self.after is None else [hops_of(self.after)])

    def embed(self, graph: PartitionedGraph) -> NodeFeatures:
        """Return the input of the last layer: `[n, hidden]`."""
        return self.stack.embed(graph, self.inputs(graph))


def build_model(
    settings: ModelSettings, graph: PartitionedGraph, num_outputs: int, seed: int
) -> Model:
    """Return the model of `settings` for this graph, with the same weights on all ranks (by seed).

    Collective.

    Raises:
        InputError: the graph lacks data that the model needs.
    """
    torch.manual_seed(seed)
    inputs = _inputs(settings, graph, num_outputs, seed)
    after: torch.nn.Module | None = None
    if settings.kind == "appnp":
        after = nn.APPNP(settings.power, settings.teleport)
    elif settings.kind == "dagnn":
        after = nn.AdaptiveDepth(num_outputs, settings.power)
    return Model(inputs, _stack(settings, graph, int(inputs.width), num_outputs), after)  # type: ignore[arg-type]


def _stack(
    settings: ModelSettings, graph: PartitionedGraph, num_inputs: int, num_outputs: int
) -> Stack | DeepStack:
    sizes = num_inputs, settings.hidden, num_outputs, settings.layers
    conv = convolution(settings, graph)
    shared: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("dropout", "input_dropout", "norm", "activation", "head")
    }
    if settings.blocks != "plain":
        return DeepStack(*sizes, conv, block=settings.blocks, **shared)
    return Stack(*sizes, conv, residual=settings.residual, jumping=settings.jumping, **shared)


def _inputs(
    settings: ModelSettings, graph: PartitionedGraph, num_outputs: int, seed: int
) -> torch.nn.Module:
    inputs: torch.nn.Module
    if graph.typed_features:
        inputs = TypedInput(graph, settings.embedding or settings.hidden, seed)
    elif settings.embedding:
        inputs = EmbeddingInput(graph, settings.embedding, seed)
    else:
        inputs = FeatureInput(graph)
    if settings.labels_as_input:
        inputs = LabelInput(inputs, num_outputs, settings.labels_as_input)
    return inputs
