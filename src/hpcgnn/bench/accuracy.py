"""`bench accuracy`: seconds of training to a validation accuracy, beside training on samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hpcgnn.bench.epoch import EpochSettings, in_turns
from hpcgnn.bench.job import count
from hpcgnn.bench.problem import Bench, GraphSize, ModelShape, size_of
from hpcgnn.bench.table import in_columns, seconds
from hpcgnn.bench.training import Contender, Environment, Ours, Training

BATCH = 1024  # nodes in the loss of one step of a sampling peer
FANOUT = (15, 10, 5)  # neighbours that it samples, by hop; 5 in further hops


@dataclass(frozen=True)
class Race:
    """The training of one contender towards the accuracy.

    Attributes:
        seconds: training time, without evaluation, until it was reached; None if it wasn't.
        epoch: the epoch in which it was reached.
        best: highest accuracy of all epochs.
        curve: seconds of training and accuracy after each epoch that was scored.
    """

    name: str
    seconds: float | None = None
    epoch: int | None = None
    best: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    problem: str | None = None

    @classmethod
    def of(cls, name: str, training: Training, target: float) -> Race:
        if training.problem is not None:
            return cls(name, problem=training.problem)
        ends = accumulate(training.seconds)
        scored = [
            (epoch, end, score)
            for epoch, (end, score) in enumerate(zip(ends, training.scores, strict=False), start=1)
            if score is not None
        ]
        if not scored:
            return cls(name, problem="it reported no scores")
        reached = next((entry for entry in scored if entry[2] >= target), None)
        curve = tuple((end, score) for _, end, score in scored)
        best = max(score for _, score in curve)
        if reached is None:
            return cls(name, best=best, curve=curve)
        return cls(name, reached[1], reached[0], best, curve)

    def cells(self) -> list[str]:
        if self.best is None:
            return [self.name, self.problem or "nothing"]
        best = f"{100 * self.best:.2f} %"
        if self.seconds is None or self.epoch is None:
            return [self.name, "not reached", count(len(self.curve), "epoch"), best]
        return [self.name, seconds(self.seconds), count(self.epoch, "epoch"), best]


@dataclass(frozen=True)
class AccuracyReport:
    """The result of `bench accuracy`."""

    graph: GraphSize
    shape: ModelShape
    target: float
    settings: EpochSettings
    races: list[Race]

    def lines(self) -> list[str]:
        sizes = "-".join(map(str, FANOUT))
        return [
            f"{self.shape} on {self.graph}",
            f"seconds of training, without evaluation, to a validation accuracy of "
            f"{100 * self.target:.1f} %; Adam, rate {self.settings.lr}; samples of {sizes} "
            f"neighbours, {BATCH} nodes a step, {self.settings.threads} threads",
            *in_columns(
                ("", "to accuracy", "after", "best"), [race.cells() for race in self.races]
            ),
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "what": "accuracy",
            "graph": asdict(self.graph),
            "model": str(self.shape),
            "target": self.target,
            "settings": asdict(self.settings),
            "races": [asdict(race) for race in self.races],
        }


def race(
    bench: Bench,
    graph: Path,
    shape: ModelShape,
    settings: EpochSettings,
    target: float,
    peers: Environment | None,
) -> AccuracyReport:
    """Train all contenders for `settings.epochs`; peers stop once they reach the accuracy.

    Raises:
        InputError: the peers can't train on this graph.
        HpcgnnError: it can't be partitioned.
    """
    graph_size = size_of(graph)
    contenders: list[Contender] = [
        Ours(bench, graph, shape, layout, settings.epochs, settings.train_options(), eval_every=1)
        for layout in settings.layouts
    ]
    if peers is not None:
        given: dict[str, object] = {
            "epochs": settings.epochs,
            "lr": settings.lr,
            "threads": settings.threads,
            "memory": bench.limits.num_bytes,
            "target": target,
            "batch": BATCH,
            "fanout": fanout(shape.layers),
            "seed": settings.seed,
        }
        problem = bench.write_problem(graph, shape, given, settings.seed)
        contenders += peers.contenders(problem, settings.threads, bench.limits)
    races = [
        Race.of(name, taken[0], target) for name, taken in in_turns(contenders, turns=1).items()
    ]
    return AccuracyReport(graph_size, shape, target, settings, races)


def fanout(layers: int) -> Sequence[int]:
    """Return the number of neighbours that a sampling peer samples in each layer."""
    return [*FANOUT, *[FANOUT[-1]] * layers][:layers]
