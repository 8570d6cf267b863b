"""Residual blocks one after the other, as deep as one likes (Li et al. 2019, 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.stack import ConvFactory, Flow, enter
from hpcgnn.nn.deep_gcn import DeepGCNLayer
from hpcgnn.nn.dropout import Dropout, constant_dropout
from hpcgnn.nn.layer import hops_of
from hpcgnn.nn.linear import Linear, NodeFeatures
from hpcgnn.nn.norm import NORMS, BatchNorm

_ACTIVATIONS: dict[str, type[torch.nn.Module]] = {"relu": torch.nn.ReLU, "elu": torch.nn.ELU}


class DeepStack(torch.nn.Module):
    """A linear map to `hidden`, `layers` convolutions in residual blocks, and the output.

    With `res+` norm, activation and dropout come before each convolution but the first, and once
    more before the output, as in DeeperGCN; with `res` they come after each convolution.

    Args:
        conv: `conv(in_channels, out_channels, layer)` makes one convolution.
        head: `conv`: the last of the convolutions gives the output, in no block; `linear`: all of
            them are in blocks and a linear map follows.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        layers: int,
        conv: ConvFactory,
        *,
        block: str,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        norm: str = "none",
        activation: str = "relu",
        head: str = "conv",
    ) -> None:
        super().__init__()
        count = layers if head == "linear" else layers - 1
        self.block, self.is_linear = block, head == "linear"
        self.input_dropout = Dropout(input_dropout, layer=0)
        self.encoder = Linear(in_channels, hidden)

        def made_norm() -> torch.nn.Module | None:
            return None if norm == "none" else NORMS[norm](hidden)

        self.blocks = torch.nn.ModuleList()
        for number in range(1, count + 1):
            inner, act = conv(hidden, hidden, number), _ACTIVATIONS[activation]()
            if block == "res+" and number == 1:
                self.blocks.append(DeepGCNLayer(inner, block="plain", layer=number))
            else:
                self.blocks.append(
                    DeepGCNLayer(inner, made_norm(), act, block, dropout, layer=number)
                )
        # What follows the last block is one more without a convolution: norm, activation, dropout.
        self.last: DeepGCNLayer | None = None
        if block == "res+" and count:
            act, none = _ACTIVATIONS[activation](), _Unchanged()
            self.last = DeepGCNLayer(none, made_norm(), act, "plain", dropout, layer=count + 1)
        self.head = (
            Linear(hidden, out_channels) if head == "linear" else conv(hidden, out_channels, layers)
        )
        self._quieten()

    def _quieten(self) -> None:
        """As `Stack`: a bias that every norm after it takes off has no gradient."""
        for layer in self.blocks:
            norm = layer.norm if self.last is None else self.last.norm
            own = getattr(layer.conv, "output_bias", getattr(layer.conv, "bias", None))
            if isinstance(norm, BatchNorm) and own is not None:
                own.register_hook(norm.gradient_of_shift)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._quieten()  # copies of parameters come without hooks

    def hops(self) -> list[int | None]:
        """Of each convolution, see `hops_of`."""
        found = [hops_of(layer) for layer in self.blocks]
        return found if self.is_linear else [*found, hops_of(self.head)]

    def forward(self, graph: PartitionedGraph, x: NodeFeatures, flow: Flow | None = None) -> Tensor:
        """Logits `[n, out_channels]`; with `flow` (a step per convolution) of its targets alone."""
        hidden_NF = self.embed(graph, x, flow)
        if self.is_linear:
            result: Tensor = self.head(hidden_NF)
            return result
        return _run(self.head, graph, hidden_NF, len(self.blocks), flow)

    def embed(self, graph: PartitionedGraph, x: NodeFeatures, flow: Flow | None = None) -> Tensor:
        """What the last layer reads: `[n, hidden]`."""
        if isinstance(x, Tensor):
            x = self.input_dropout(graph, x)
        elif self.input_dropout.p and self.training:
            x = constant_dropout(graph, x, self.input_dropout.p)
        x_NF: Tensor = self.encoder(x)
        for number, layer in enumerate(self.blocks):
            x_NF = _run(layer, graph, x_NF, number, flow)
            graph.execution.newest = None  # what follows takes memory before backward comes here
        if self.last is not None:
            step = flow[len(self.blocks) - 1] if flow else None
            x_NF = self.last(graph if step is None else step.after, x_NF)
        return x_NF


class _Unchanged(torch.nn.Module):
    hops = 0

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:
        return x


def _run(
    layer: torch.nn.Module, graph: PartitionedGraph, x_NF: Tensor, number: int, flow: Flow | None
) -> Tensor:
    step = flow[number] if flow else None
    y_NF: Tensor = layer(*enter(step, graph, x_NF))
    return y_NF if step is None else y_NF[step.leave]
