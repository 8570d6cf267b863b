"""Hidden layers one after the other, or in segments that backward computes again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.settings import ModelSettings
from hpcgnn.nn.linear import NodeFeatures
from hpcgnn.sar.recompute import recomputed

Layer = Callable[[NodeFeatures, int], Tensor]  # the number of the layer from 0


_KEEP_OUTPUT = ("sage", "gcn", "gat", "rgcn", "sgc", "appnp", "dagnn")


def hidden_layers(settings: ModelSettings) -> int:
    """Layers before the one that gives the output."""
    return settings.layers - (settings.head == "conv")


def layers_together(settings: ModelSettings) -> int:
    """How many hidden layers are best computed again together.

    One by one where a layer keeps more than its output, which is what the next one reads; else as
    many as there are then segments, so that what is kept and what is computed again are alike.
    """
    plain = settings.blocks == "plain" and settings.jumping == "none" and not settings.residual
    plain = plain and settings.norm == "none" and settings.activation == "relu"
    if not plain or settings.kind not in _KEEP_OUTPUT or settings.aggr in ("max", "min"):
        return 1
    return max(1, math.ceil(math.sqrt(hidden_layers(settings))))


def segments(settings: ModelSettings) -> list[range]:
    """The hidden layers by segment; the last one isn't computed again before a linear head."""
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
    """What each layer returns; of several that are computed again together, the last one's.

    Args:
        x: what the first layer reads.
        modules: those of each layer.
        alone: every layer's output is needed: each is computed again by itself.
        spares_last: backward begins with the last layers, so that forgetting them gains nothing.
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
