"""`bench scale`: the same work on more ranks, or proportionally more work, beside the ideal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcgnn.bench.epoch import WARM_UP, EpochSettings, in_turns
from hpcgnn.bench.job import Layout
from hpcgnn.bench.problem import Bench, GraphSize, ModelShape, size_of
from hpcgnn.bench.table import Spread, in_columns, seconds, size
from hpcgnn.bench.training import Ours, Training
from hpcgnn.errors import HpcgnnError


@dataclass(frozen=True)
class ScaleStep:
    """The result for one number of ranks.

    Attributes:
        seconds: seconds per epoch; None if there is a `problem`.
        ideal: seconds of the first step, scaled to this step's work and its processors, at most the
            cores of the machine.
        sent_bytes: bytes sent by all ranks in an epoch.
        rank_bytes: peak of the largest rank, above imports.
        ideal_bytes: that peak of the first step, scaled to this step's work and ranks.
        peak_bytes: peak of all ranks together.
    """

    layout: Layout
    graph: GraphSize
    seconds: Spread | None = None
    ideal: float | None = None
    sent_bytes: float = 0.0
    rank_bytes: float | None = None
    ideal_bytes: float | None = None
    peak_bytes: float | None = None
    losses: tuple[float, ...] = ()
    problem: str | None = None

    def cells(self) -> list[str]:
        name = f"{self.layout}, {self.graph.nodes:,} nodes"
        if self.seconds is None:
            return [name, self.problem or "nothing"]
        sizes = (self.sent_bytes, self.rank_bytes, self.ideal_bytes, self.peak_bytes)
        return [
            name,
            str(self.seconds),
            "" if self.ideal is None else seconds(self.ideal),
            *("" if value is None else size(value) for value in sizes),
            f"{self.losses[-1]:.6f}",
        ]


HEAD = ("", "an epoch", "ideal", "sent", "largest rank", "ideal", "all ranks", "loss")


@dataclass(frozen=True)
class ScaleReport:
    """The result of `bench scale`; `kind` is strong or weak."""

    kind: str
    shape: ModelShape
    settings: EpochSettings
    steps: list[ScaleStep]
    cores: int

    def lines(self) -> list[str]:
        counted = f"medians of {self.settings.turns} x {self.settings.epochs} epochs"
        lines = [
            f"{self.kind} scaling of {self.shape}, {counted}; peaks above imports",
            *in_columns(HEAD, [step.cells() for step in self.steps]),
        ]
        if any(step.layout.processors > self.cores for step in self.steps):
            lines.append(f"this machine has {self.cores} cores, which the ideal takes into account")
        return lines

    def as_json(self) -> dict[str, Any]:
        return {
            "what": "scale",
            "kind": self.kind,
            "model": str(self.shape),
            "settings": asdict(self.settings),
            "steps": [asdict(step) for step in self.steps],
        }


def measure_scale(
    bench: Bench, graphs: Sequence[Path], shape: ModelShape, settings: EpochSettings, *, weak: bool
) -> ScaleReport:
    """Train on each number of ranks in turns.

    Args:
        graphs: one for each layout; the same one for strong scaling.

    Raises:
        HpcgnnError: the first layout can't train.
    """
    cores = os.cpu_count() or 1
    total = WARM_UP + settings.epochs
    contenders = [
        Ours(bench, graph, shape, layout, total, settings.train_options())
        for graph, layout in zip(graphs, settings.layouts, strict=True)
    ]
    for graph, layout in zip(graphs, settings.layouts, strict=True):
        bench.partitioned(graph, layout.ranks)
    found = in_turns(contenders, settings.turns)
    sizes = [size_of(graph) for graph in graphs]
    return ScaleReport(
        "weak" if weak else "strong",
        shape,
        settings,
        steps(settings.layouts, sizes, list(found.values()), cores),
        cores,
    )


def steps(
    layouts: Sequence[Layout],
    sizes: Sequence[GraphSize],
    found: Sequence[list[Training]],
    cores: int,
) -> list[ScaleStep]:
    """Return the results, with the ideals that follow from the first step.

    Raises:
        HpcgnnError: the first step has no result.
    """
    first = found[0][-1]
    if first.problem is not None or first.rank_bytes is None:
        raise HpcgnnError(f"bench: {layouts[0]}: {first.problem or 'memory is not known'}")
    base = _spread(found[0]).median
    rows = []
    for layout, graph, taken in zip(layouts, sizes, found, strict=True):
        last = taken[-1]
        if last.problem is not None:
            rows.append(ScaleStep(layout, graph, problem=last.problem))
            continue
        work = graph.nodes / sizes[0].nodes
        share = min(layout.processors, cores) / min(layouts[0].processors, cores)
        rows.append(
            ScaleStep(
                layout,
                graph,
                _spread(taken),
                base * work / share,
                last.sent_bytes,
                max(one.rank_bytes or 0.0 for one in taken),
                first.rank_bytes * work * layouts[0].ranks / layout.ranks,
                max(one.peak_bytes or 0.0 for one in taken),
                tuple(last.losses),
            )
        )
    return rows


def _spread(taken: list[Training]) -> Spread:
    return Spread.of([value for one in taken for value in one.seconds[WARM_UP:]])
