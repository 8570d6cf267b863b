"""Seconds of an epoch on a machine: of the mean rank by part, plus waiting for the busiest."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import Shape, parameters
from hpcgnn.train.plan.machine import Links, Machine
from hpcgnn.train.plan.work import PassWork, evaluation_pass, training_pass

_SMALL_REDUCTIONS = 8  # all-reduces of a few numbers per epoch: loss, metrics, stop
_SMALL = 64  # bytes
_SUMS_FIRST = ("sage", "gin", "gine", "pna", "rgcn")  # these send a layer's input rows


@dataclass(frozen=True)
class Seconds:
    """Seconds of one epoch, including evaluation every `eval_every` epochs.

    Attributes:
        products: dense products.
        gathers: sums and attention over edges.
        rows: all other passes over rows: norms, dropout, the loss, the optimizer.
        steps: costs of layers' passes whatever the graph's size: Python, starting messages.
        messages: sending and receiving halo rows.
        all_reduce: of gradients and metrics.
        waiting: for the ranks with most nodes, edges and halo rows.
    """

    products: float
    gathers: float
    rows: float
    steps: float
    messages: float
    all_reduce: float
    waiting: float

    @property
    def epoch(self) -> float:
        return float(sum(getattr(self, entry.name) for entry in fields(self)))


def seconds(shape: Shape, config: Config, machine: Machine) -> Seconds:
    """Return the seconds of one epoch; `shape` is that of the largest part, with the busiest."""
    mean = _rank(shape.mean(), config, machine)
    heaviest = [_rank(part, config, machine) for part in shape.busiest or (shape,)]
    waiting = _waiting(mean, heaviest, sums_first=config.model.kind in _SUMS_FIRST)
    waiting /= machine.turns(shape.ranks)  # a waiting rank leaves its core to others
    return Seconds(**mean, all_reduce=_all_reduce(shape, config, machine), waiting=waiting)


def _waiting(
    mean: dict[str, float], heaviest: list[dict[str, float]], *, sums_first: bool
) -> float:
    """Return the seconds of waiting for the busiest rank.

    Rows that are multiplied before they are sent come late from the rank with most of them, and
    another rank may have most edges: measured epochs are near the sum of both.
    """
    if sums_first:
        return max(0.0, max(sum(part.values()) for part in heaviest) - sum(mean.values()))
    return sum(max(0.0, max(part[name] for part in heaviest) - mean[name]) for name in mean)


def _rank(shape: Shape, config: Config, machine: Machine) -> dict[str, float]:
    total = dict.fromkeys(("products", "gathers", "rows", "steps", "messages"), 0.0)
    passes = ((1.0, training_pass), (1 / config.training.eval_every, evaluation_pass))
    for times, made in passes:
        for name, value in _seconds(made(shape, config), shape, config, machine).items():
            total[name] += times * value
    return total


def _seconds(work: PassWork, shape: Shape, config: Config, machine: Machine) -> dict[str, float]:
    ranks = shape.ranks
    half = config.device.precision == "bf16" and machine.device == "cuda"
    sharing = machine.turns(ranks)  # ranks that share a core share its caches
    products = sum(flops / machine.products.at(width) for flops, width in work.products)
    gathers = sum(
        machine.gathers[kernel].seconds(width, edges, rows, sharing * shape.nodes)
        for kernel, width, edges, rows in work.gathers
    )
    passes = 4 * work.rows / machine.rows + work.streamed / machine.host
    messages = 0.0
    if ranks > 1 and work.exchanges and shape.halo:
        links = machine.links(ranks)
        num_bytes = 4 * work.sent * shape.halo * (0.5 if half else 1)
        messages = _travel(links, num_bytes, work.exchanges, ranks)
        # Packed by the sender, added by the receiver.
        passes += 4 * num_bytes / machine.rows
    return {
        "products": products * machine.slowdown("products", ranks) * (0.5 if half else 1),
        "gathers": gathers * machine.slowdown("gathers", ranks) * (0.6 if half else 1),
        "rows": passes * machine.slowdown("rows", ranks),
        "steps": machine.step_seconds
        * (
            work.steps * machine.slowdown("steps", ranks)
            + work.slab_steps * machine.slowdown("rows", ranks)
        ),
        "messages": messages,
    }


def _travel(links: Links, num_bytes: float, exchanges: int, ranks: int) -> float:
    """Return the seconds of a message to every other rank in each exchange."""
    count = exchanges * (ranks - 1)
    return count * links.of(num_bytes / count)


def _all_reduce(shape: Shape, config: Config, machine: Machine) -> float:
    if shape.ranks == 1:
        return 0.0
    links, ranks = machine.links(shape.ranks), shape.ranks
    gradients = 4 * parameters(shape, config) / ranks
    return 2 * (ranks - 1) * (links.of(gradients) + _SMALL_REDUCTIONS * links.of(_SMALL) / ranks)
