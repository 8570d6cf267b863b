"""The work of a rank in a pass of the model, counted from shape and settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hpcgnn.sar.gat_heads import one_at_a_time
from hpcgnn.sar.relation_pairs import SLAB, SLAB_ON_GPU
from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import (
    Layer,
    Shape,
    computed_again,
    first_cached,
    input_width,
    layers,
    on_host,
    parameters,
    relation_pairs,
)
from hpcgnn.train.plan.halo import thinned
from hpcgnn.train.plan.heads import keep_wide
from hpcgnn.train.plan.machine import HEADS
from hpcgnn.train.plan.pruning import Share, shares

# Numbers read or written besides products and gathers, per node and column of a layer, in forward
# and backward: biases, scores, scales, dropout, sums of gradients.
_ROWS = {"sage": (7, 11), "gcn": (8, 10), "gat": (8, 12), "gatv2": (9, 12), "rgcn": (8, 12)}
_OTHER_ROWS = (12, 20)
_PLAIN_TORCH = 8  # times as many gathers as a sum, for messages edge by edge
# Steps of a layer's pass; of the rest of training (loss, sum of gradients, Adam); of evaluation.
_STEPS, _OTHER_STEPS = {"gcn": 1.0, "sage": 1.2}, 2.6
_TRAINING_STEPS, _EVALUATION_STEPS = 3.0, 2.0
_SLAB_STEPS = (0.08, 0.16)  # of a slab of pairs of a relation and a node, forward and backward
_LOSS_ROWS = 12  # numbers per output
_ADAM_ROWS = 12  # numbers per parameter


@dataclass
class PassWork:
    """The work of a pass, summed over operations.

    Attributes:
        products: (floating-point operations, width of the square weights that have the same
            operations per number read and written: the harmonic mean of both widths).
        gathers: (kernel, width, edges, rows with edges).
        rows: numbers read or written by passes over rows.
        sent: numbers sent per halo row.
        exchanges: number of message exchanges.
        streamed: bytes of features read from host memory.
        steps: costs that don't depend on the size of the graph, in passes of a GCN layer.
        slab_steps: those of slabs, which send no messages.
    """

    products: list[tuple[float, float]] = field(default_factory=list)
    gathers: list[tuple[str, float, float, float]] = field(default_factory=list)
    rows: float = 0.0
    sent: float = 0.0
    exchanges: int = 0
    streamed: float = 0.0
    steps: float = 0.0
    slab_steps: float = 0.0

    def product(self, count: float, rows: float, a: float, b: float) -> None:
        if rows and a and b:
            self.products.append((2.0 * count * rows * a * b, 2 * a * b / (a + b)))

    def gather(self, kernel: str, width: float, edges: float, rows: float) -> None:
        if width and edges:
            self.gathers.append((kernel, width, edges, rows))

    def attend(self, kernel: str, channels: float, heads: float, edges: float, rows: float) -> None:
        """Count each head as one of the `HEADS` heads of its width that were measured."""
        share = heads / HEADS
        self.gather(kernel, HEADS * channels, edges * share, rows * share)


def training_pass(shape: Shape, config: Config) -> PassWork:
    """Return the work of forward, backward and the optimizer."""
    work = PassWork(steps=_TRAINING_STEPS)
    found = shares(config, shape.degree, shape.labelled)
    for index, (layer, share) in enumerate(_with_shares(layers(shape, config), found)):
        again = [False] * (index in computed_again(config))
        for backward in (False, *again, True):
            _convolve(work, shape, config, layer, share, index, backward=backward)
    _head(work, shape, config, found[-1].written, count=3)
    labelled = 1.0 if shape.labelled is None else shape.labelled
    work.rows += _LOSS_ROWS * shape.nodes * labelled * shape.outputs
    work.rows += _ADAM_ROWS * parameters(shape, config)
    extra = config.training.adversarial_steps
    if extra:
        for index, layer in enumerate(layers(shape, config)):
            for backward in (False, True):
                for _ in range(extra):
                    _convolve(work, shape, config, layer, Share(), index, backward=backward)
    return work


def evaluation_pass(shape: Shape, config: Config) -> PassWork:
    """Return the work of a forward pass over all nodes."""
    work = PassWork(steps=_EVALUATION_STEPS)
    for index, layer in enumerate(layers(shape, config)):
        _convolve(work, shape, config, layer, Share(), index, backward=False)
    _head(work, shape, config, 1.0, count=1)
    work.rows += _LOSS_ROWS * shape.nodes * shape.outputs
    return work


def _with_shares(found: list[Layer], of: list[Share]) -> Iterable[tuple[Layer, Share]]:
    """Pair layers with their shares; propagation after the convolutions has the whole graph."""
    return zip(found, of + [Share()] * (len(found) - len(of)), strict=True)


def _head(work: PassWork, shape: Shape, config: Config, share: float, count: int) -> None:
    model = config.model
    if model.head == "linear":
        width = model.hidden * (model.layers if model.jumping == "cat" else 1)
        work.product(count, shape.nodes * share, width, shape.outputs)
    if model.blocks != "plain":
        work.product(count, shape.nodes, input_width(shape, config), model.hidden)


def _convolve(
    work: PassWork,
    shape: Shape,
    config: Config,
    layer: Layer,
    share: Share,
    index: int,
    *,
    backward: bool,
) -> None:
    model, n, edges = config.model, shape.nodes * share.read, shape.edges * share.edges
    work.steps += _STEPS.get(model.kind, _OTHER_STEPS)
    sent = layer.returned if backward else layer.sent
    kept = thinned(shape.degree, share.edges, shape.ranks)
    # Rows with edges of a message: in a symmetric graph as many as are sent.
    remote = (shape.halo or 0) * kept
    work.sent += sent * kept
    work.exchanges += sent > 0
    if layer.inputs == 0:  # propagation after the convolutions
        for _ in range(model.power):
            work.gather("sum", shape.outputs, edges, n + remote)
        work.rows += 6.0 * model.power * n * shape.outputs
        return
    first = index == 0 and model.blocks == "plain" and not model.embedding
    sparse = first and shape.stored is not None
    a, b = float(layer.inputs), float(layer.outputs)
    forward_rows, backward_rows = _ROWS.get(model.kind, _OTHER_ROWS)
    extra = 4.0 * (model.norm != "none") + 2.0 * (model.activation == "elu")
    work.rows += ((backward_rows if backward else forward_rows) + extra) * n * b
    products = _Products(work, n, a, b, first=first, sparse=shape.stored if sparse else None)
    cached, kind = first and first_cached(shape, config), model.kind
    if first and on_host(shape, config) and not (cached and kind in ("gcn", "sgc")):
        work.streamed += 4.0 * n * a
    if model.residual:
        products.linear(1, backward=backward)
    if kind in ("gat", "gatv2", "transformer"):
        heads, how = _attention(shape, config, layer, index)
        _attend(work, products, kind, heads, edges + n, n + remote, **how, backward=backward)
        return
    if kind in ("rgcn", "rgat"):
        slab = SLAB_ON_GPU if config.device.kind == "cuda" else SLAB
        _relate(work, products, shape, edges, slab, backward=backward)
        products.linear(1, backward=backward)
        return
    narrow = min(a, b) if config.streaming.narrow_first or sparse else a
    narrow = b if sparse else narrow
    if not cached and kind not in ("appnp", "dagnn"):
        times = {"sgc": model.power, "gine": _PLAIN_TORCH, "pna": 2 * _PLAIN_TORCH}.get(kind, 1)
        times = _PLAIN_TORCH if kind == "deeper" else times
        for _ in range(times):
            work.gather("sum", narrow, edges, n + remote)
    products.linear(2 if kind in ("sage", "gin", "gine") else 1, backward=backward)
    if kind == "pna":
        products.linear(12, backward=backward)


def _attention(
    shape: Shape, config: Config, layer: Layer, index: int
) -> tuple[int, dict[str, bool]]:
    """Return the number of heads, and the options of `_attend`."""
    model = config.model
    last = model.head == "conv" and index == model.layers - 1
    heads = (model.output_heads or model.heads) if last else model.heads
    alone = (
        model.kind == "gat"
        and last
        and one_at_a_time(
            config.streaming.mode, heads=heads, channels=layer.outputs, inputs=layer.inputs
        )
    )
    outputs = shape.outputs * (model.output_heads or model.heads)
    keeps = last or (index == model.layers - 2 and keep_wide(config, outputs))
    return heads, {"last": last, "alone": alone, "keeps": keeps}


@dataclass
class _Products:
    """Dense products of a layer; `sparse`: stored entries of its input, None if it is dense."""

    work: PassWork
    n: float
    a: float
    b: float
    first: bool
    sparse: int | None

    def linear(self, count: float, width: float | None = None, *, backward: bool) -> None:
        """Add a forward product, or gradients of weights and, except in layer 1, of the input."""
        b = self.b if width is None else width
        if self.sparse is not None:
            for _ in range(round(count)):
                self.work.gather("sum", b, self.sparse, self.n)
            return
        self.work.product(count * ((2 - self.first) if backward else 1), self.n, self.a, b)


def _attend(
    work: PassWork,
    products: _Products,
    kind: str,
    heads: int,
    edges: float,
    rows: float,
    *,
    last: bool,
    alone: bool,
    keeps: bool,
    backward: bool,
) -> None:
    wide = products.b * heads if last else products.b
    channels = wide / heads
    kernel = "gatv2" if kind == "gatv2" else "gat"
    direction = "backward" if backward else "forward"
    both = {"gatv2": 2, "transformer": 4}.get(kind, 1)
    products.linear(both, wide, backward=backward)
    if alone:
        for _ in range(heads):
            work.attend(f"gat_{direction}", channels, 1, edges, rows)
            if backward:
                work.attend("gat_forward", channels, 1, edges, rows)
        if backward:
            products.linear(1, wide, backward=False)
        work.exchanges += heads - 1 + heads * backward
        work.steps += _OTHER_STEPS * (heads - 1 + heads * backward)
    else:
        work.attend(f"{kernel}_{direction}", channels, heads, edges, rows)
        if backward and kind == "gat" and not keeps:
            products.linear(1, wide, backward=False)
    if last and heads > 1:
        work.rows += (6.0 if backward else 4.0) * products.n * (wide - products.b)


def _relate(
    work: PassWork, products: _Products, shape: Shape, edges: float, slab: int, *, backward: bool
) -> None:
    """Add the work on pairs of a relation and a node, see `sar.relation_pairs`."""
    a, b = products.a, products.b
    pairs = relation_pairs(shape) * edges / max(shape.edges, 1)
    work.slab_steps += pairs / slab * _SLAB_STEPS[backward]
    if backward:
        work.gather("sum", b, edges, pairs)
        work.product(2 - products.first, pairs, a, b)
        work.rows += pairs * (3 * a + 2 * b)
        if not products.first:
            work.gather("sum", a, pairs, pairs)
    else:
        work.gather("sum", a, edges, pairs)
        work.product(1, pairs, a, b)
        work.gather("sum", b, pairs, pairs)
        work.rows += pairs * (a + 2 * b)
