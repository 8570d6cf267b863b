"""From a configuration and a graph to a model and its optimizer."""

from __future__ import annotations

import torch
import torch._dynamo  # torch.optim imports it at its first use; better with all other imports
from torch import Tensor

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.demands import edge_width
from hpcgnn.models.inputs import EmbeddingInput, FeatureInput, LabelInput, TypedInput
from hpcgnn.models.settings import ModelSettings
from hpcgnn.models.stack import ConvFactory, Flow, Stack, enter
from hpcgnn.nn.layer import hops_of
from hpcgnn.nn.linear import NodeFeatures


class Model(torch.nn.Module):
    """Input, a stack of convolutions, and propagation steps after them where the model has some."""

    def __init__(
        self, inputs: torch.nn.Module, stack: Stack, after: torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        self.inputs, self.stack, self.after = inputs, stack, after

    def forward(
        self,
        graph: PartitionedGraph,
        x_NF: NodeFeatures | None = None,
        flow: Flow | None = None,
    ) -> Tensor:
        """Logits `[n, outputs]`, with `flow` those of its targets.

        Args:
            x_NF: in place of the input, where it was perturbed.
            flow: a step per number of `hops`.
        """
        x_NF = self.inputs(graph) if x_NF is None else x_NF
        logits: Tensor = self.stack(graph, x_NF, flow)
        if self.after is None:
            return logits
        step = flow[-1] if flow else None
        logits = self.after(*enter(step, graph, logits))
        return logits if step is None else logits[step.leave]

    def hops(self) -> list[int | None]:
        """Hops of each convolution and of the propagation after them, if there is one."""
        return self.stack.hops() + ([] if self.after is None else [hops_of(self.after)])

    def embed(self, graph: PartitionedGraph) -> NodeFeatures:
        """What the last layer reads: `[n, hidden]`."""
        return self.stack.embed(graph, self.inputs(graph))


def build_model(
    settings: ModelSettings, graph: PartitionedGraph, num_outputs: int, seed: int
) -> Model:
    """The model of `settings` for this graph, with the same weights on every rank (by seed).

    Collective.

    Raises:
        InputError: the graph lacks what the model needs.
    """
    torch.manual_seed(seed)
    inputs = _inputs(settings, graph, num_outputs, seed)
    after: torch.nn.Module | None = None
    if settings.kind == "appnp":
        after = nn.APPNP(settings.power, settings.teleport)
    elif settings.kind == "dagnn":
        after = nn.AdaptiveDepth(num_outputs, settings.power)
    stack = Stack(
        int(inputs.width),  # type: ignore[arg-type]
        settings.hidden,
        num_outputs,
        settings.layers,
        _convolution(settings, graph, num_outputs),
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
        norm=settings.norm,
        activation=settings.activation,
        residual=settings.residual,
        head=settings.head,
        jumping=settings.jumping,
    )
    return Model(inputs, stack, after)


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


def _convolution(settings: ModelSettings, graph: PartitionedGraph, num_outputs: int) -> ConvFactory:
    """`make(in, out, layer)`; attention heads are averaged where the output is read off."""
    heads, attention_dropout = settings.heads, settings.attention_dropout
    edge_dim: int | None = None
    if settings.kind in ("gat", "gatv2"):  # a rank without edges learns the width from others
        width = graph.ring.comm.allreduce(edge_width(graph), "max", where="edge features")
        edge_dim = width or None

    def attention(kind: type[nn.GATConv] | type[nn.GATv2Conv]) -> ConvFactory:
        def make(a: int, b: int, layer: int) -> torch.nn.Module:
            last = settings.head == "conv" and layer == settings.layers
            out, count = (b, settings.output_heads or heads) if last else (b // heads, heads)
            return kind(
                a,
                out,
                count,
                concat=not last,
                dropout=attention_dropout,
                edge_dim=edge_dim,
                layer=layer,
            )

        return make

    def isomorphism(a: int, b: int, layer: int) -> torch.nn.Module:
        mlp = torch.nn.Sequential(nn.Linear(a, b), torch.nn.ReLU(), nn.Linear(b, b))
        return nn.GINConv(mlp, train_eps=True)

    def relational(a: int, b: int, layer: int) -> torch.nn.Module:
        if not graph.num_relations:
            raise InputError("--model rgcn needs relations; convert the graph from triples")
        return nn.RGCNConv(a, b, graph.num_relations, num_bases=settings.bases or None)

    makers: dict[str, ConvFactory] = {
        "gcn": lambda a, b, layer: nn.GCNConv(a, b),
        "sage": lambda a, b, layer: nn.SAGEConv(a, b),
        "gat": attention(nn.GATConv),
        "gatv2": attention(nn.GATv2Conv),
        "gin": isomorphism,
        "rgcn": relational,
        "sgc": lambda a, b, layer: nn.SGConv(a, b, settings.power),
        "appnp": lambda a, b, layer: nn.Pointwise(a, b),
        "dagnn": lambda a, b, layer: nn.Pointwise(a, b),
    }
    return makers[settings.kind]
