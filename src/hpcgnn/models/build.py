"""From a configuration and a graph to a model and its optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcgnn import nn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.convolutions import convolution
from hpcgnn.models.deep_stack import DeepStack
from hpcgnn.models.inputs import EmbeddingInput, FeatureInput, LabelInput, TypedInput
from hpcgnn.models.settings import ModelSettings
from hpcgnn.models.stack import Flow, Stack, enter
from hpcgnn.nn.layer import hops_of
from hpcgnn.nn.linear import NodeFeatures


class Model(torch.nn.Module):
    """Input, a stack of convolutions, and propagation steps after them where the model has some."""

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
        """Logits `[n, outputs]`, with `flow` those of its targets.

        Args:
            x: in place of the input, where it was perturbed.
            flow: a step per number of `hops`.
        """
        x = self.inputs(graph) if x is None else x
        logits: Tensor = self.stack(graph, x, flow)
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
