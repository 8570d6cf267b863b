"""What a training run will need, from counts alone: memory of the largest rank, bytes sent.

For n local nodes, F input features, H hidden width, C outputs, L layers, E local edges, float32:

    features      4 n F                 (sparse: 16 bytes per stored entry, with the transpose)
    first sum     4 n F                 the cached aggregate of the input, 0 where nothing is cached
    edges         4 E (8 with weights or relations, + 4 per edge feature) + 20 (n + halo); twice
                  where the graph is not symmetric; 120 E more for R-GCN's pairs
    activations   4 n H k (L - 1)       k arrays of a layer are kept for backward: `KEPT`
    backward      4 n (2.5 H + 2 C)     gradients and scratch of the layer at hand: `BACKWARD`, or
                                        of the last one where that is wider (heads of attention)
    parameters    4 p (1 + 1 + 2)       weights, gradients, Adam's two moments; 2 more if P > 1
    halo buffers  --halo-buffer, or less where 2 * prefetch messages of any length are less
    base          30 MB                 MPI, threads, files

The peak is their sum. Before the first epoch some models need scratch per edge; the larger of both
counts. See docs/memory.md for how far measured runs lie from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

from hpcgnn.settings import parse_size
from hpcgnn.train.config import Config

IMPORTS = 370_000_000  # resident once Python, torch and MPI are loaded, on CPUs
BASE = 30_000_000
MOST_RANKS = 1 << 20
KEPT = {
    "sage": 1, "gcn": 1, "gat": 2, "gatv2": 4, "gin": 3, "rgcn": 1, "appnp": 1, "sgc": 1,
    "dagnn": 1, "transformer": 6, "gine": 4, "pna": 24, "rgat": 4, "deeper": 5,
}  # fmt: skip
BACKWARD = {"gatv2": 3.5, "appnp": 1.5, "dagnn": 1.5}  # times H; others 2.5
LAST = {"gat": 4.5, "gatv2": 7.0}  # times all heads' outputs, in the last layer's backward
EDGE_SCRATCH = {"gcn": 17, "appnp": 17, "sgc": 17, "dagnn": 17, "rgcn": 90}  # bytes per edge
MESSAGES = ("transformer", "gine", "pna", "rgat", "deeper")  # in plain torch, a few edges at a time
PIECES = 60_000_000  # scratch of their messages
PAIR_BYTES = 120  # per edge, for R-GCN: pairs of relations and rows, both ways


@dataclass(frozen=True)
class Shape:
    """Counts of the largest part. `halo`: remote rows it reads; None where that is unknown.

    `volume`: halo rows of all parts together. `stored`: entries of sparse features, None if dense.
    `edge_bytes`: bytes of one stored edge.
    """

    ranks: int
    nodes: int
    edges: int
    features: int
    outputs: int
    halo: int | None = None
    volume: int | None = None
    stored: int | None = None
    edge_bytes: int = 4
    relations: int = 0
    symmetric: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes of the largest rank by purpose, above what the imports hold; `peak` is their sum."""

    features: int
    first_sum: int
    edges: int
    activations: int
    backward: int
    parameters: int
    halo_buffers: int
    base: int

    @property
    def peak(self) -> int:
        return sum(getattr(self, entry.name) for entry in fields(self))


@dataclass(frozen=True)
class Layer:
    """Widths of one convolution; `sent` numbers per boundary node forward, `returned` backward."""

    inputs: int
    outputs: int
    sent: int
    returned: int


def layers(shape: Shape, config: Config) -> list[Layer]:
    """The convolutions, and the propagation after them where the model has some."""
    model = config.model
    widths = [_input_width(shape, config)] + [model.hidden] * (model.layers - 1)
    if model.head == "conv" and model.jumping == "cat" and model.layers > 1:
        widths[-1] *= model.layers - 1
    if model.blocks != "plain":
        widths[0] = model.hidden
    widths.append(model.hidden if model.head == "linear" else shape.outputs)
    found = []
    for index, (a, b) in enumerate(pairwise(widths), 1):
        sent, returned = _traffic(config, a, b, last=index == model.layers)
        if index == 1 and _first_cached(shape, config):
            sent = returned = 0
        found.append(Layer(a, b, sent, returned))
    if model.kind in ("appnp", "dagnn"):
        steps = model.power * shape.outputs
        found.append(Layer(0, 0, steps, steps))
    return found


def estimate(shape: Shape, config: Config) -> Memory:
    """Peak memory of the largest rank by purpose, see the module's docstring for the formula."""
    model = config.model
    n, width = shape.nodes, _input_width(shape, config)
    halo = shape.nodes if shape.halo is None else shape.halo
    edges = shape.edge_bytes * shape.edges + 20 * (n + halo)
    pairs = PAIR_BYTES * shape.edges if model.kind == "rgcn" else 0
    features = 4 * n * shape.features if shape.stored is None else 16 * shape.stored
    activations = _activations(shape, config, halo)
    scratch = EDGE_SCRATCH.get(model.kind, 0) * shape.edges
    backward = max(_backward(shape, config), scratch - activations)
    if model.kind in MESSAGES:
        backward += min(PIECES, 48 * shape.edges * model.hidden)
    copies = 2 + (2 if config.optimiser.kind != "sgd" else 0)
    parameters = 4 * _parameters(shape, config) * (copies + 2 * (shape.ranks > 1))
    parameters += 4 * n * model.embedding * copies
    return Memory(
        features=features,
        first_sum=4 * n * width if _first_cached(shape, config) else 0,
        edges=pairs + (edges if shape.symmetric else 2 * edges),
        activations=activations,
        backward=backward,
        parameters=parameters,
        halo_buffers=_buffers(shape, config),
        base=BASE,
    )


def _activations(shape: Shape, config: Config, halo: int) -> int:
    """Bytes kept from forward to backward."""
    model = config.model
    n, width = shape.nodes, _input_width(shape, config)
    attention = model.kind in LAST
    kept = KEPT[model.kind] + (model.norm != "none")
    # What ELU reads is kept, and in attention layers once for both.
    shared = attention and model.norm == "none" and not model.residual
    kept += model.activation == "elu" and not shared
    kept += attention and model.residual
    kept += 2 * (model.blocks != "plain")  # the sum so far, and what the convolution reads
    count = model.layers - (model.head == "conv")
    numbers = n * model.hidden * kept * count
    if model.jumping == "max":
        numbers += (4 + count) * n * model.hidden // 4
    if model.jumping == "cat" and model.head == "conv":
        numbers += n * model.hidden * count
    if config.streaming.mode != "sar" and attention:
        rows = halo + (n if model.kind == "gat" else 0)  # what came, and GAT's own products
        numbers += rows * sum(layer.sent for layer in layers(shape, config))
    if not _first_cached(shape, config) and (shape.stored is None or _made_dense(config)):
        numbers += n * width * (2 if model.input_dropout else 1)
    if config.training.adversarial_steps:
        numbers += 4 * n * width  # the perturbation, its gradient, the perturbed input, its sums
    return 4 * numbers


def _backward(shape: Shape, config: Config) -> int:
    """Bytes of gradients and scratch of the layer that takes most."""
    model = config.model
    heads = model.output_heads or model.heads
    hidden = model.hidden if model.layers > 1 or model.head == "linear" else 0
    numbers = BACKWARD.get(model.kind, 2.5) * hidden + 2 * shape.outputs
    if model.head == "conv":
        numbers = max(numbers, LAST.get(model.kind, 0) * heads * shape.outputs)
    if model.kind == "dagnn":
        numbers = max(numbers, (model.power + 4) * shape.outputs)
    if config.device.precision == "bf16":
        numbers += 2 * hidden
    return int(4 * shape.nodes * numbers)


def bytes_per_epoch(shape: Shape, config: Config) -> int | None:
    """Most bytes that all ranks together send in the ring in an epoch; None if `volume` is unknown.

    Evaluation is a forward pass more, every `eval_every` epochs. Sums may travel as fewer rows.
    """
    if shape.volume is None:
        return None
    found = layers(shape, config)
    passes = 1 + 1 / config.training.eval_every + config.training.adversarial_steps
    numbers = sum(passes * layer.sent + layer.returned for layer in found)
    return int(4 * shape.volume * numbers)


def smallest_ranks(
    shape_at: Callable[[int], Shape], config: Config, limit: int, start: int = 1
) -> int | None:
    """The least number of ranks from `start` on whose estimate stays within `limit` bytes.

    Above 64 ranks the search goes in steps of 1/64. None if no number up to `MOST_RANKS` fits.
    """
    ranks = start
    while ranks <= MOST_RANKS:
        if estimate(shape_at(ranks), config).peak <= limit:
            return ranks
        ranks += max(1, ranks // 64)
    return None


def _input_width(shape: Shape, config: Config) -> int:
    model = config.model
    width = model.embedding + shape.features
    return width + (shape.outputs if model.labels_as_input else 0)


def _made_dense(config: Config) -> bool:
    """Whether sparse features become an array of their own."""
    model = config.model
    adds_first = model.kind in ("rgcn", "gine", "pna", "rgat", "deeper")
    return bool(model.embedding) or (adds_first and model.blocks == "plain")


def _first_cached(shape: Shape, config: Config) -> bool:
    model = config.model
    constant = not (model.embedding or model.input_dropout or model.labels_as_input)
    constant = constant and not config.training.adversarial_steps and shape.stored is None
    linear = model.kind in ("gcn", "sgc") or (
        model.kind == "sage" and model.aggr not in ("max", "min")
    )
    constant = constant and model.blocks == "plain"
    return constant and config.streaming.cache_first and linear


def _traffic(config: Config, a: int, b: int, last: bool) -> tuple[int, int]:
    model = config.model
    narrow = min(a, b) if config.streaming.narrow_first else a
    if model.kind in ("gat", "gatv2", "transformer"):
        heads, wide = model.heads, b
        if last and model.head == "conv":
            heads = model.output_heads or heads
            wide = b * heads
        if model.kind == "gat":
            return wide + heads, wide + 4 * heads
        if model.kind == "transformer":  # keys and values
            return 2 * wide, 4 * wide
        return wide, 2 * wide
    return {
        "sage": (narrow, narrow),
        "gcn": (narrow, narrow),
        "gin": (a, a),
        "gine": (a, 2 * a),
        "pna": (a, 2 * a),
        "rgat": (a, 2 * a),
        "deeper": (b, 2 * b),
        "rgcn": (a, b),
        "sgc": (model.power * narrow, model.power * narrow),
    }.get(model.kind, (0, 0))


def _parameters(shape: Shape, config: Config) -> int:
    model = config.model
    total = shape.outputs * model.hidden if model.head == "linear" else 0
    if model.blocks != "plain":
        total += (_input_width(shape, config) + 1) * model.hidden
    for layer in layers(shape, config):
        a, b = layer.inputs, layer.outputs
        relations = model.bases or shape.relations
        copies = {"sage": 2, "gatv2": 2, "rgcn": 1 + relations, "rgat": relations, "transformer": 4}
        total += (copies.get(model.kind, 1) + model.residual) * a * b + 3 * b
        if model.kind in ("gin", "gine"):
            total += b * b
        elif model.kind == "deeper":
            total += 4 * b * b
        elif model.kind == "pna":
            total += 2 * a * a + 12 * a * b + b * b
        elif model.kind in ("gat", "gatv2", "transformer") and b == shape.outputs:
            total += (model.heads - 1) * a * b
    return total


def _buffers(shape: Shape, config: Config) -> int:
    model = config.model
    if shape.ranks == 1:
        return 0
    rows = shape.nodes if shape.halo is None else shape.halo
    widest = max(max(layer.sent, layer.returned) for layer in layers(shape, config))
    if model.kind in ("appnp", "dagnn", "sgc"):
        widest = max(model.hidden, shape.outputs)
    if config.streaming.mode == "oneshot":
        return 2 * 4 * rows * widest
    streaming = config.streaming
    return min(parse_size(streaming.halo_buffer), 4 * streaming.prefetch * 2 * rows * widest)
