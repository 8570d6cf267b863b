"""Convolutions with norms, activations and dropout between them; residual blocks of any depth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.subgraph import Step
from hpcgnn.models.segments import in_segments
from hpcgnn.nn.attention import GATConv
from hpcgnn.nn.deep_gcn import DeepGCNLayer
from hpcgnn.nn.dropout import Dropout, constant_dropout
from hpcgnn.nn.gcn import GCNConv
from hpcgnn.nn.layer import hops_of
from hpcgnn.nn.linear import Linear, NodeFeatures, linear
from hpcgnn.nn.norm import NORMS, BatchNorm, GraphNorm
from hpcgnn.nn.sage import SAGEConv
from hpcgnn.sar.autograd import first_order

Flow = Sequence[Step | None]
ConvFactory = Callable[[int, int, int], torch.nn.Module]
_ACTIVATIONS: dict[str, type[torch.nn.Module]] = {"relu": torch.nn.ReLU, "elu": torch.nn.ELU}


class Stack(torch.nn.Module):
    """`layers` convolutions from `in_channels` to `out_channels`.

    Args:
        conv: `conv(in_channels, out_channels, layer)` makes one convolution.
        head: `conv`: the last convolution gives the output; `linear`: all convolutions are hidden
            and a linear map follows.
        jumping: `none`, `cat` or `max` over hidden layers (Xu et al. 2018), before the head.
        residual: whether to add a linear map of each convolution's input to its output.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        layers: int,
        conv: ConvFactory,
        *,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        norm: str = "none",
        activation: str = "relu",
        residual: bool = False,
        head: str = "conv",
        jumping: str = "none",
    ) -> None:
        super().__init__()
        num_hidden = layers if head == "linear" else layers - 1
        widths = [in_channels] + [hidden] * num_hidden
        ends = widths[1:] if head == "linear" else [*widths[1:], out_channels]
        if head == "conv" and jumping == "cat" and num_hidden:
            widths[-1] = hidden * num_hidden  # input of the last convolution
        pairs = list(zip([*widths, hidden][: len(ends)], ends, strict=True))
        self.activation, self.jumping = activation, jumping
        self.input_dropout = Dropout(input_dropout, layer=0)
        self.convs = torch.nn.ModuleList(conv(a, b, i + 1) for i, (a, b) in enumerate(pairs))
        self.residuals = torch.nn.ModuleList(
            Linear(a, b) if residual else torch.nn.Identity() for a, b in pairs
        )
        self.residual = residual
        self.norms = torch.nn.ModuleList(
            NORMS[norm](hidden) for _ in range(num_hidden if norm != "none" else 0)
        )
        fresh = norm != "none" or residual  # so that no layer saves the ReLU's input
        self.dropouts = torch.nn.ModuleList(
            Dropout(
                dropout,
                layer=i + 1,
                relu=activation == "relu",
                in_place=fresh or not getattr(self.convs[i], "keeps_output", False),
            )
            for i in range(num_hidden)
        )
        self._quieten()
        head_in = hidden * num_hidden if jumping == "cat" else hidden
        self.head = Linear(head_in, out_channels) if head == "linear" else None

    def _quieten(self) -> None:
        """Set the gradient of each bias that a norm cancels to 0, its value in exact arithmetic.

        Adam would turn the noise that rounding leaves there into full steps, and runs on different
        numbers of ranks would diverge.
        """
        for conv, residual, norm in zip(self.convs, self.residuals, self.norms, strict=False):
            if isinstance(norm, BatchNorm | GraphNorm):
                own = getattr(conv, "output_bias", getattr(conv, "bias", None))
                for bias in (own, getattr(residual, "bias", None)):
                    if bias is not None:
                        bias.register_hook(norm.gradient_of_shift)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._quieten()  # copies of parameters have no hooks

    def forward(self, graph: PartitionedGraph, x: NodeFeatures, flow: Flow | None = None) -> Tensor:
        """Return logits `[n, out_channels]`; with `flow` (a step per convolution) its targets'."""
        if self.head is not None and self.jumping == "cat":
            hidden = self._hidden(graph, self._input(graph, x), flow)
            return linear_of_all(hidden, self.head)
        hidden_NF = self.embed(graph, x, flow)
        if self.head is not None:
            result: Tensor = self.head(hidden_NF)
            return result
        return self._convolve(graph, hidden_NF, len(self.convs) - 1, flow)

    def hops(self) -> list[int | None]:
        """Return the hops of each convolution, see `hops_of`."""
        return [hops_of(conv) for conv in self.convs]

    def embed(
        self, graph: PartitionedGraph, x_NF: NodeFeatures, flow: Flow | None = None
    ) -> NodeFeatures:
        """Return the input of the last layer: `[n, hidden]`, with `cat` `[n, hidden * layers]`."""
        x_NF = self._input(graph, x_NF)
        if self.jumping == "cat" and len(self.dropouts):
            return torch.cat(list(self._hidden(graph, x_NF, flow)), dim=-1)
        if self.jumping == "max" and len(self.dropouts):
            return largest(self._hidden(graph, x_NF, flow))
        last = deque(self._hidden(graph, x_NF, flow), maxlen=1)
        return last[0] if last else x_NF

    def _input(self, graph: PartitionedGraph, x_NF: NodeFeatures) -> NodeFeatures:
        if isinstance(x_NF, Tensor):
            dropped: Tensor = self.input_dropout(graph, x_NF)
            return dropped
        if self.input_dropout.p and self.training:
            return constant_dropout(graph, x_NF, self.input_dropout.p)
        return x_NF

    def _hidden(
        self, graph: PartitionedGraph, x_NF: NodeFeatures, flow: Flow | None
    ) -> Iterator[Tensor]:
        """Return an iterator over outputs of hidden layers: of every layer if `jumping` reads all.

        Otherwise those of the last layers of the segments that are recomputed together.
        """
        modules = [
            torch.nn.ModuleList(kind[i] for kind in (self.convs, self.norms) if len(kind))
            for i in range(len(self.dropouts))
        ]
        return in_segments(
            graph,
            x_NF,
            lambda x_NF, i: self._layer(graph, x_NF, i, flow),
            modules,
            alone=self.jumping != "none",
            spares_last=self.head is not None,
        )

    def _layer(
        self, graph: PartitionedGraph, x_NF: NodeFeatures, i: int, flow: Flow | None
    ) -> Tensor:
        """Apply a convolution, and norm, activation and dropout after it."""
        dropout, step = self.dropouts[i], flow[i] if flow else None
        if isinstance(dropout, Dropout) and self._rectifies(i, on_gpu=graph.node_ids.is_cuda):
            y_NF = self._convolve(graph, x_NF, i, flow, dropout)
            if self.jumping != "none":
                graph.execution.newest = None
            return y_NF
        y_NF = self._convolve(graph, x_NF, i, flow)
        graph.execution.newest = None  # the next steps take memory before backward reaches this
        here = graph if step is None else step.after
        if len(self.norms):
            y_NF = self.norms[i](here, y_NF)
        if self.activation == "elu":
            y_NF = functional.elu(y_NF)
        result: Tensor = dropout(here, y_NF)
        return result

    def _rectifies(self, layer: int, *, on_gpu: bool) -> bool:
        """Return whether a convolution applies ReLU and dropout itself, with nothing in between."""
        if self.activation != "relu" or len(self.norms) or self.residual:
            return False
        conv = self.convs[layer]
        if isinstance(conv, GCNConv):
            return on_gpu
        if isinstance(conv, SAGEConv):
            return not conv.normalize
        return isinstance(conv, GATConv) and conv.concat and conv.res is None

    def _hands(
        self, graph: PartitionedGraph, x_NF: NodeFeatures, layer: int, flow: Flow | None
    ) -> bool:
        """Return whether a convolution leaves rows to the next one, which alone reads them."""
        if layer + 1 >= len(self.dropouts) or not self._rectifies(layer, on_gpu=False):
            return False
        if flow and (flow[layer], flow[layer + 1]) != (None, None):
            return False  # a pruned layer takes rows of the output before its convolution
        if self.jumping != "none" or graph.execution.together:
            return False
        conv, after = self.convs[layer], self.convs[layer + 1]
        return isinstance(conv, SAGEConv) and conv.hands_to(after, graph, x_NF)

    def _convolve(
        self,
        graph: PartitionedGraph,
        x_NF: NodeFeatures,
        layer: int,
        flow: Flow | None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Apply one convolution, which with `dropout` applies ReLU and dropout itself."""
        step = flow[layer] if flow else None
        graph, x_NF = enter(step, graph, x_NF)
        then: dict[str, Any] = {} if dropout is None else {"then": dropout.rectifier(graph)}
        if dropout is not None and self._hands(graph, x_NF, layer, flow):
            then["hands"] = True
        y_NF: Tensor = self.convs[layer](graph, x_NF, **then)
        if self.residual:
            y_NF = y_NF + self.residuals[layer](x_NF)
        return y_NF if step is None else y_NF[step.leave]


def enter(
    step: Step | None, graph: PartitionedGraph, x_NF: NodeFeatures
) -> tuple[PartitionedGraph, NodeFeatures]:
    """Return the graph that a layer runs on and the rows that it reads."""
    if step is None:
        return graph, x_NF
    if step.enter is not None and isinstance(x_NF, Tensor):
        x_NF = x_NF[step.enter]
    return step.graph, x_NF


# Jumping knowledge (Xu et al. 2018) without an array of all layers: each is reduced at once.
def largest(layers: Iterable[Tensor]) -> Tensor:
    """Return the elementwise maximum over layers: `[n, F]`; ties go to the earliest layer."""
    return reduce(_Larger.apply, layers)


def linear_of_all(layers: Iterable[Tensor], head: Linear) -> Tensor:
    """Apply `head` to the concatenation of all layers: `[n, F]` each to `[n, Y]`.

    There is a product per layer, before the next layer is computed, so that backward holds one
    layer's gradient at a time.
    """
    out_NY: Tensor = head.weight.new_zeros(1) if head.bias is None else head.bias
    columns = 0
    for y_NF in layers:
        weight_YF = head.weight[:, columns : columns + y_NF.shape[1]]
        out_NY = out_NY + linear(y_NF, weight_YF)
        columns += y_NF.shape[1]
    return out_NY


class _Larger(torch.autograd.Function):
    """The elementwise maximum, which saves one byte per number for backward."""

    @staticmethod
    def forward(ctx: Any, a_NF: Tensor, b_NF: Tensor) -> Tensor:
        ctx.save_for_backward(b_NF > a_NF)
        return torch.maximum(a_NF, b_NF)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (second_NF,) = ctx.saved_tensors
        return grads[0].masked_fill(second_NF, 0), grads[0] * second_NF


class DeepStack(torch.nn.Module):
    """A linear map to `hidden`, `layers` convolutions in residual blocks, and the output.

    With `res+`, norm, activation and dropout come before each convolution but the first, and once
    more before the output, as in DeeperGCN; with `res` they come after each convolution.

    Args:
        conv: `conv(in_channels, out_channels, layer)` makes one convolution.
        head: `conv`: the last convolution gives the output, outside of any block; `linear`: all
            convolutions are in blocks and a linear map follows.
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
        # After the last block comes one without a convolution: norm, activation, dropout.
        self.last: DeepGCNLayer | None = None
        if block == "res+" and count:
            act, none = _ACTIVATIONS[activation](), _Unchanged()
            self.last = DeepGCNLayer(none, made_norm(), act, "plain", dropout, layer=count + 1)
        self.head = (
            Linear(hidden, out_channels) if head == "linear" else conv(hidden, out_channels, layers)
        )
        self._quieten()

    def _quieten(self) -> None:
        """Set a bias's gradient to 0 as `Stack` does, if every norm after it cancels the bias."""
        for layer in self.blocks:
            norm = layer.norm if self.last is None else self.last.norm
            own = getattr(layer.conv, "output_bias", getattr(layer.conv, "bias", None))
            if isinstance(norm, BatchNorm) and own is not None:
                own.register_hook(norm.gradient_of_shift)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._quieten()  # copies of parameters have no hooks

    def hops(self) -> list[int | None]:
        """Return the hops of each convolution, see `hops_of`."""
        found = [hops_of(layer) for layer in self.blocks]
        return found if self.is_linear else [*found, hops_of(self.head)]

    def forward(self, graph: PartitionedGraph, x: NodeFeatures, flow: Flow | None = None) -> Tensor:
        """Return logits `[n, out_channels]`; with `flow` (a step per convolution) its targets'."""
        hidden_NF = self.embed(graph, x, flow)
        if self.is_linear:
            result: Tensor = self.head(hidden_NF)
            return result
        return _run(self.head, graph, hidden_NF, len(self.blocks), flow)

    def embed(self, graph: PartitionedGraph, x: NodeFeatures, flow: Flow | None = None) -> Tensor:
        """Return the input of the last layer: `[n, hidden]`."""
        if isinstance(x, Tensor):
            x = self.input_dropout(graph, x)
        elif self.input_dropout.p and self.training:
            x = constant_dropout(graph, x, self.input_dropout.p)
        x_NF: Tensor = self.encoder(x)

        def run(x_NF: NodeFeatures, number: int) -> Tensor:
            y_NF = _run(self.blocks[number], graph, x_NF, number, flow)
            graph.execution.newest = None  # the next steps take memory before backward reaches this
            return y_NF

        blocks = list(self.blocks)
        outputs = in_segments(graph, x_NF, run, blocks, spares_last=self.is_linear)
        x_NF = deque(outputs, maxlen=1).pop() if blocks else x_NF
        if self.last is not None:
            step = flow[len(self.blocks) - 1] if flow else None
            x_NF = self.last(graph if step is None else step.after, x_NF)
        return x_NF


class _Unchanged(torch.nn.Module):
    hops = 0

    def forward(self, graph: PartitionedGraph, x: Tensor) -> Tensor:
        return x


def _run(
    layer: torch.nn.Module,
    graph: PartitionedGraph,
    x_NF: NodeFeatures,
    number: int,
    flow: Flow | None,
) -> Tensor:
    step = flow[number] if flow else None
    y_NF: Tensor = layer(*enter(step, graph, x_NF))
    return y_NF if step is None else y_NF[step.leave]
