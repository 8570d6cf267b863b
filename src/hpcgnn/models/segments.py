"""Hidden layers run one by one, or in segments that are recomputed in backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.settings import ModelSettings
from hpcgnn.nn.linear import NodeFeatures
from hpcgnn.sar.recompute import recomputed

Layer = Callable[[NodeFeatures, int], Tensor]  # with the number of the layer, from 0


_KEEP_OUTPUT = ("sage", "gcn", "gat", "rgcn", "sgc", "appnp", "dagnn")


def hidden_layers(settings: ModelSettings) -> int:
    """Return the number of layers before the one that gives the output."""
    return settings.layers - (settings.head == "conv")


def layers_together(settings: ModelSettings) -> int:
    """Return the best number of hidden layers to recompute together.

    It is 1 if a layer saves more than its output, which is the input of the next one. Otherwise it
    is about the number of segments that result, which balances the memory of what is saved and of
    what is recomputed.
    """
    plain = settings.blocks == "plain" and settings.jumping == "none" and not settings.residual
    plain = plain and settings.norm == "none" and settings.activation == "relu"
    if not plain or settings.kind not in _KEEP_OUTPUT or settings.aggr in ("max", "min"):
        return 1
    return max(1, math.ceil(math.sqrt(hidden_layers(settings))))


def segments(settings: ModelSettings) -> list[range]:
    """Return the layers of each segment; before a linear head the last one isn't recomputed."""
    count, size = hidden_layers(settings), layers_together(settings)
    return [range(low, min(low + size, count)) for low in range(0, count, size)]


def in_segments(
    graph: PartitionedGraph,
    x: NodeFeatures,
    layer: Layer,
    modules: Sequence[torch.nn.Module],
    *,
    alone: bool = False,
    spares_last: bool = False,
) -> Iterator[Tensor]:
    """Yield the output of each layer, or of the last layer of each segment recomputed together.

    Args:
        x: input of the first layer.
        modules: modules of each layer.
        alone: every layer's output is needed, so each layer is recomputed by itself.
        spares_last: don't recompute the last segment: backward begins with it, so that freeing
            its activations gains nothing.
    """
    count, together = len(modules), graph.execution.together if torch.is_grad_enabled() else 0
    size = 1 if alone or not together else together
    for low in range(0, count, size):
        numbers = range(low, min(low + size, count))

        def run(x: NodeFeatures, numbers: range = numbers) -> Tensor:
            for number in numbers:
                x = layer(x, number)
            return x  # type: ignore[return-value]

        if together and not (spares_last and numbers.stop == count):
            x = recomputed(graph, run, x, *(modules[number] for number in numbers))
        else:
            x = run(x)
        yield x
