"""The needs of a training run, from counts alone: memory of the largest rank, bytes sent.

For n local nodes, F input features, H hidden width, C outputs, L layers, E local edges, float32:

    features      4 n F                 (sparse: 16 bytes per stored entry, with the transpose)
    first sum     4 n F                 the cached aggregate of the input, 0 if nothing is cached
    edges         4 E (8 with weights or relations, + 4 per edge feature) + 20 (n + halo), or twice;
                  8 E + 40 n more for self-loops of gat and gatv2; R-GCN's pairs 200 each, 14 E
    activations   4 n H k (L - 1)       k arrays of a layer are kept for backward: `KEPT`; with
                  --recompute the inputs of segments, and the largest of them whole; with --keep-in
                  bf16 half of that, and one array in full
    backward      4 n (2.5 H + 2 C)     of the layer that needs most: `BACKWARD`, `FIRST`, `LAST`
    parameters    4 p (1 + 1 + 2)       weights, gradients, Adam's two moments; 2 more if P > 1
    halo buffers  --halo-buffer, or 2 * prefetch of the longest messages, up to 16 MiB each; of
                  sums on a CPU up to 4 MiB each, and as many as take 32 MiB, up to 32
    base          4 MB                  MPI and threads; `PEER` per other rank; `SPARSE`

The peak is their sum, or what some models need per edge before the first epoch if that is more.
docs/memory.md says how far measured runs are from it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

from hpcgnn.comm.ring import IN_FLIGHT, MESSAGE_BYTES, MOST_MESSAGES, SHORT_BYTES
from hpcgnn.graph.features import SLAB_BYTES
from hpcgnn.models.segments import segments
from hpcgnn.settings import parse_size
from hpcgnn.train.config import Config
from hpcgnn.train.plan.coefficients import (
    ALONE,
    APART,
    APART_LAST,
    BACKWARD,
    BASE,
    EDGE_SCRATCH,
    FIRST,
    FIRST_IN_PLACE,
    FORWARD,
    KEPT,
    LAST,
    LAST_SUM,
    LONGEST_LIST,
    MESSAGES,
    MOST_PEERS,
    NOT_IN_PLACE,
    OUTPUTS,
    PAIR_BYTES,
    PAIRED_EDGE_BYTES,
    PEER,
    PIECES,
    READ_IN_PLACE,
    SELF_LOOPS,
    SPARSE,
    SUMS,
    SUMS_IN_SAR,
    WIDE,
)
from hpcgnn.train.plan.halo import thinned, untouched
from hpcgnn.train.plan.heads import come_alone, come_apart, keep_wide
from hpcgnn.train.plan.pruning import Share, shares


@dataclass(frozen=True)
class Shape:
    """Counts of the largest part.

    `halo`: remote rows it reads; None if unknown. `volume`: halo rows of all parts together.
    `stored`: entries of sparse features, None if dense. `edge_bytes`: bytes of one stored edge.
    `whole_nodes`, `whole_edges`: of all parts; None: as if all were equally large. `labelled`:
    share of nodes that are trained on, None if unknown. `block_edges`: edges in the part's largest
    block; None: all. `busiest`: the parts with most nodes, edges and halo rows, for which others
    wait; empty: this part. `pairs_per_edge`: pairs of a relation and a node with such edges, per
    edge; None: relations are random.
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
    whole_nodes: int | None = None
    whole_edges: int | None = None
    labelled: float | None = None
    pairs_per_edge: float | None = None
    block_edges: int | None = None
    busiest: tuple[Shape, ...] = ()

    @property
    def degree(self) -> float:
        """Edges per node of the whole graph."""
        if self.whole_nodes and self.whole_edges is not None:
            return self.whole_edges / self.whole_nodes
        return self.edges / max(self.nodes, 1)

    def mean(self) -> Shape:
        """Return the shape of a part if all parts were equal."""
        if self.ranks == 1 or self.whole_nodes is None or self.whole_edges is None:
            return self
        nodes = max(1, self.whole_nodes // self.ranks)
        stored = None if self.stored is None else round(self.stored * nodes / max(self.nodes, 1))
        halo = self.halo if self.volume is None else round(self.volume / self.ranks)
        edges = self.whole_edges // self.ranks
        return replace(self, nodes=nodes, edges=edges, halo=halo, stored=stored)


@dataclass(frozen=True)
class Memory:
    """Bytes of the largest rank by purpose, in addition to the imports; `peak` is their sum."""

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
    """Widths of a convolution; numbers `sent` forward and `returned` backward per boundary node."""

    inputs: int
    outputs: int
    sent: int
    returned: int


def layers(shape: Shape, config: Config) -> list[Layer]:
    """Return the convolutions, and the propagation after them if the model has one."""
    model = config.model
    widths = [input_width(shape, config)] + [model.hidden] * (model.layers - 1)
    if model.head == "conv" and model.jumping == "cat" and model.layers > 1:
        widths[-1] *= model.layers - 1
    if model.blocks != "plain":
        widths[0] = model.hidden
    widths.append(model.hidden if model.head == "linear" else shape.outputs)
    found = []
    for index, (a, b) in enumerate(pairwise(widths), 1):
        sent, returned = _traffic(config, a, b, last=index == model.layers)
        if index == 1 and first_cached(shape, config):
            sent = returned = 0
        found.append(Layer(a, b, sent, returned))
    if model.kind in ("appnp", "dagnn"):
        steps = model.power * shape.outputs
        found.append(Layer(0, 0, steps, steps))
    return found


def estimate(shape: Shape, config: Config) -> Memory:
    """Return the peak memory of the largest rank by purpose, by the module docstring's formula."""
    model, on_gpu = config.model, config.device.kind == "cuda"
    n, width = shape.nodes, input_width(shape, config)
    halo = shape.nodes if shape.halo is None else shape.halo
    features = 4 * n * shape.features if shape.stored is None else 16 * shape.stored
    if on_host(shape, config):
        features = min(features, 2 * SLAB_BYTES)
    activations = _activations(shape, config, halo)
    block_edges = shape.edges if shape.block_edges is None else shape.block_edges
    first_sum = 4 * n * width if first_cached(shape, config) else 0
    buffers = _buffers(shape, config)
    backward = max(_backward(shape, config), _evaluation(shape, config) - activations)
    # The scratch for arranging edges is freed before the other arrays are allocated.
    scratch = EDGE_SCRATCH.get(model.kind, 0) * block_edges
    backward = max(backward, scratch - activations - first_sum - buffers)
    if model.kind in MESSAGES:
        backward += min(PIECES, 48 * shape.edges * model.hidden)
    learned = 4 * parameters(shape, config) * parameter_copies(shape, config)
    learned += 4 * n * model.embedding * parameter_copies(replace(shape, ranks=1), config)
    return Memory(
        features=features,
        first_sum=first_sum,
        edges=_edges(shape, config, halo),
        activations=activations,
        backward=backward,
        parameters=learned,
        halo_buffers=buffers,
        base=_base(shape, on_gpu=on_gpu),
    )


def parameter_copies(shape: Shape, config: Config) -> int:
    """Return the arrays as large as the parameters: these, gradients, moments, and sums."""
    return 2 + (2 if config.optimiser.kind != "sgd" else 0) + 2 * (shape.ranks > 1)


def _edges(shape: Shape, config: Config, halo: int) -> int:
    """Return the bytes of edge lists: of the whole part, and of pruned layers."""
    kind = config.model.kind
    sizes = [(float(shape.edges), float(shape.nodes), float(halo), 1 + (not shape.symmetric))]
    inside = 1.0 if shape.block_edges is None else shape.block_edges / max(shape.edges, 1)
    for share in shares(config, shape.degree, shape.labelled):
        if share.pruned:  # pruned edges are not symmetric
            left = thinned(shape.degree, share.edges, shape.ranks)
            sizes.append((share.edges * shape.edges, share.read * shape.nodes, left * halo, 2))
    total = 0.0
    for edges, nodes, rows, ways in sizes:
        one_way = shape.edge_bytes * edges + 20 * (nodes + rows)
        if kind in SELF_LOOPS:  # the lists the other way, and those of local edges without loops
            one_way += 4 * (edges * (1 + inside) + 2 * nodes) + 32 * nodes
        total += ways * one_way
    if kind == "rgcn":
        total += PAIR_BYTES * relation_pairs(shape) + PAIRED_EDGE_BYTES * shape.edges
    return round(total)


def _base(shape: Shape, *, on_gpu: bool) -> int:
    base = BASE + (0 if shape.stored is None else SPARSE)
    return base if on_gpu else base + min(PEER * (shape.ranks - 1), MOST_PEERS)


def _activations(shape: Shape, config: Config, halo: int) -> int:
    """Return the bytes kept from forward to backward."""
    model = config.model
    n, width = shape.nodes, input_width(shape, config)
    attention = model.kind in LAST
    kept = KEPT[model.kind] + (model.norm != "none")
    # The input of ELU is kept; in attention layers it is the output that they keep.
    shared = attention and model.norm == "none" and not model.residual
    kept += model.activation == "elu" and not shared
    kept += attention and model.residual
    # If only ReLU follows, what a layer of gat keeps is the next one's input.
    kept -= model.kind == "gat" and shared and (model.activation, model.blocks) == ("relu", "plain")
    kept += 2 * (model.blocks != "plain")  # the sum so far, and the convolution's input
    count = model.layers - (model.head == "conv")
    found = shares(config, shape.degree, shape.labelled)
    numbers = n * model.hidden * _kept_layers(found, count, kept, config)
    if config.device.keep_in == "bf16":  # halves float32 rows, except the present layer's
        numbers = numbers / 2 + n * model.hidden
    if model.jumping == "max":
        numbers += (4 + count) * n * model.hidden // 4
    if model.jumping == "cat" and model.head == "conv":
        numbers += n * model.hidden * count
    if config.streaming.mode != "sar" and attention:
        rows = halo + (n if model.kind == "gat" else 0)  # received rows, and GAT's own products
        numbers += rows * sum(layer.sent for layer in layers(shape, config))
    if not first_cached(shape, config) and not on_host(shape, config):
        numbers += n * width * _inputs_kept(shape, config)
    if config.training.adversarial_steps:
        numbers += 4 * n * width  # the perturbation, its gradient, the perturbed input, its sums
    return int(4 * numbers)


def _kept_layers(found: list[Share], count: int, kept: int, config: Config) -> float:
    """Return the arrays of the first `count` layers; of outputs, rows that the next one reads."""
    returned = [after.read for after in found[1:]] + [found[-1].written]
    own = [(kept - 1) * share.read + rows for share, rows in zip(found, returned, strict=True)]
    if not config.streaming.recompute or not count:
        return sum(own[:count])
    parts = segments(config.model)
    inputs = sum(returned[part.start - 1] for part in parts[1:])
    inputs += returned[count - 1] if config.model.head == "conv" else 0
    # Plus one whole segment; if layers keep only outputs, its last is among the inputs already.
    last = [returned[part.stop - 1] if kept == 1 else 0 for part in parts]
    return inputs + max(
        sum(own[p.start : p.stop]) - one for p, one in zip(parts, last, strict=True)
    )


def computed_again(config: Config) -> range:
    """Return the layers that backward computes again."""
    parts = segments(config.model) if config.streaming.recompute else []
    parts = parts if config.model.head == "conv" else parts[:-1]
    return range(parts[-1].stop if parts else 0)


def _inputs_kept(shape: Shape, config: Config) -> int:
    """Return how many arrays as large as the first layer's dense input are made from features."""
    model = config.model
    if shape.stored is not None:
        return int(_made_dense(config))
    if model.input_dropout:
        return 2
    own = bool(model.embedding or model.labels_as_input)
    in_place = model.kind in READ_IN_PLACE
    if model.kind == "sage":  # sums products of the input if they are narrower
        narrows = config.streaming.narrow_first and model.hidden <= shape.features
        in_place = narrows and _in_place(config)
    return int(own or not in_place or model.blocks != "plain")


def relation_pairs(shape: Shape) -> float:
    """Return the number of pairs of a relation and a node with such edges."""
    if shape.pairs_per_edge is not None:
        return shape.edges * shape.pairs_per_edge
    relations = max(shape.relations, 1)
    degree = shape.edges / max(shape.nodes, 1)
    return shape.nodes * relations * (1 - untouched(degree, 1 / relations))


def _backward(shape: Shape, config: Config) -> int:
    """Return the bytes of gradients and scratch of the layer that needs most."""
    model = config.model
    heads = model.output_heads or model.heads
    hidden = model.hidden if model.layers > 1 or model.head == "linear" else 0
    found = shares(config, shape.degree, shape.labelled)
    read, written = found[-1].read, found[-1].written * shape.outputs
    nodes = shape.nodes if shape.whole_nodes is None else shape.whole_nodes / shape.ranks
    apart = come_apart(nodes, config)
    times = APART if apart else BACKWARD.get(model.kind, 2.5)
    over = model.kind == "sage" and _in_place(config) and not any(s.pruned for s in found)
    times = NOT_IN_PLACE if model.kind == "sage" and not over else times
    times += model.kind == "gat" and model.jumping != "none"  # it also holds the gradient
    own, numbers = read, read * times * hidden + OUTPUTS.get(model.kind, 2) * written
    if model.head == "conv" and len(found) > 1:  # the last hidden layer's output is whole
        own = found[-2].read
        if len(found) == 2 and first_cached(shape, config):
            times = min(times, FIRST_IN_PLACE if over else FIRST)
        whole = (own * times + own - read) * hidden
        numbers = max(numbers, whole + OUTPUTS.get(model.kind, 2) * written)
    if model.kind in LAST_SUM:
        kept, wide = LAST_SUM[model.kind]
        numbers = max(numbers, own * (kept if over else 1.0) * hidden + wide * written)
    if model.head == "conv":
        inputs = layers(shape, config)[model.layers - 1].inputs
        kept, wide = APART_LAST if apart else LAST.get(model.kind, (0.0, 0.0))
        last = kept * hidden + wide * heads * shape.outputs
        if model.kind == "gat" and come_alone(config, heads, heads * shape.outputs, inputs):
            last = ALONE * shape.outputs + inputs
        if keep_wide(config, heads * shape.outputs):
            last = max(last, WIDE * hidden + heads * shape.outputs)
        numbers = max(numbers, read * last)
    if model.kind == "dagnn":
        numbers = max(numbers, (model.power + 4) * shape.outputs)
    if config.device.precision == "bf16":
        numbers += (1.5 if over else 2) * hidden
    return int(4 * shape.nodes * numbers)


def _in_place(config: Config) -> bool:
    """Return whether sage layers, as one function on a CPU, write gradients over kept arrays."""
    device, model = config.device, config.model
    plain = model.blocks == "plain" and model.jumping == "none" and not model.residual
    plain = plain and not model.input_dropout
    plain = plain and device.kind != "cuda" and device.keep_in != "bf16"
    return plain and not config.streaming.recompute and model.aggr not in ("max", "min")


def _evaluation(shape: Shape, config: Config) -> int:
    """Return the bytes of a forward pass over all nodes, of which nothing is kept."""
    model = config.model
    hidden = model.hidden if model.layers > 1 or model.head == "linear" else 0
    times = FORWARD.get(model.kind, 3)
    if model.kind == "sage" and model.layers == 2 and first_cached(shape, config):
        times -= 1  # its hidden layer has a single product
    return int(4 * shape.nodes * (times * hidden + 2 * shape.outputs))


def bytes_per_epoch(shape: Shape, config: Config) -> int | None:
    """Return the most bytes that all ranks send in the ring per epoch; None if `volume` is unknown.

    Evaluation is another forward pass, every `eval_every` epochs. Sums may be sent as fewer rows.
    """
    if shape.volume is None:
        return None
    found = layers(shape, config)
    whole = 1 / config.training.eval_every + config.training.adversarial_steps
    pruned = shares(config, shape.degree, shape.labelled)
    numbers = 0.0
    for index, layer in enumerate(found):
        left = pruned[index].edges if index < len(pruned) else 1.0
        left = thinned(shape.degree, left, shape.ranks)
        times = 1 + (index in computed_again(config))
        numbers += whole * layer.sent + left * (times * layer.sent + layer.returned)
    return int(4 * shape.volume * numbers)


def input_width(shape: Shape, config: Config) -> int:
    """Return the number of columns that the first layer reads."""
    model = config.model
    width = model.embedding + shape.features
    return width + (shape.outputs if model.labels_as_input else 0)


def _made_dense(config: Config) -> bool:
    """Return whether sparse features become a dense array."""
    model = config.model
    adds_first = model.kind in ("rgcn", "gine", "pna", "rgat", "deeper")
    return bool(model.embedding) or (adds_first and model.blocks == "plain")


def on_host(shape: Shape, config: Config) -> bool:
    """Return whether dense features are streamed from host memory through a GPU."""
    device = config.device
    return device.kind == "cuda" and device.features_on == "host" and shape.stored is None


def first_cached(shape: Shape, config: Config) -> bool:
    """Return whether the first layer's sum is computed once and cached."""
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
            again = wide + heads if last and come_alone(config, heads, wide, a) else 0
            return wide + heads, wide + 4 * heads + again
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


def parameters(shape: Shape, config: Config) -> int:
    """Return the number of learned values, without embeddings."""
    model = config.model
    total = shape.outputs * model.hidden if model.head == "linear" else 0
    if model.blocks != "plain":
        total += (input_width(shape, config) + 1) * model.hidden
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
    widest = max(widest, input_width(shape, config) * first_cached(shape, config))
    if model.kind in ("appnp", "dagnn", "sgc"):
        widest = max(model.hidden, shape.outputs)
    if config.streaming.mode == "oneshot":
        return 2 * 4 * rows * widest
    # A slot holds the rows from one other rank, if they fit, and the gradients that are returned.
    longest = min(1.0, LONGEST_LIST / (shape.ranks - 1)) * rows
    one_way = model.kind in SUMS or (config.streaming.mode == "sar" and model.kind in SUMS_IN_SAR)
    whole = round(4 * (1 if one_way else 2) * longest * widest)
    halo_buffer, prefetch = parse_size(config.streaming.halo_buffer), config.streaming.prefetch
    short = model.kind in SUMS and config.device.kind != "cuda"
    most = max(1, min(SHORT_BYTES if short else MESSAGE_BYTES, halo_buffer // (2 * prefetch)))
    messages, length = (shape.ranks - 1) * -(-whole // most), min(most, whole)
    if short and length:
        ahead = min(IN_FLIGHT, halo_buffer // 2) // length
        prefetch = max(prefetch, min(ahead, MOST_MESSAGES))
    return 2 * min(prefetch, messages) * length
