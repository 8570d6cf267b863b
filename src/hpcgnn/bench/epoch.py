"""`bench epoch`: an epoch of training by hpcgnn and by every installed peer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpcgnn.bench import card
from hpcgnn.bench.floor import Floor, measure_floor
from hpcgnn.bench.job import Layout
from hpcgnn.bench.problem import Bench, GraphSize, ModelShape, size_of
from hpcgnn.bench.table import Spread, in_columns, seconds, short, size
from hpcgnn.bench.training import Contender, Environment, Ours, Training
from hpcgnn.errors import HpcgnnError, InputError, warn

WARM_UP = 1  # epochs of a turn that aren't counted, since caches and buffers are set up in them


@dataclass(frozen=True)
class EpochSettings:
    """Settings of a comparison: each of `turns`, in alternating order, counts `epochs`."""

    layouts: list[Layout]
    epochs: int
    turns: int
    seed: int = 0
    lr: float = 0.01
    options: str = ""  # of `train`
    device: str = "cpu"

    def __post_init__(self) -> None:
        try:
            shlex.split(self.options)
        except ValueError as error:
            raise InputError(
                f"--options can't be divided into words: {error}", value=self.options
            ) from None

    @property
    def threads(self) -> int:
        """Threads of a peer: as many as the largest of our layouts uses in all."""
        return max(layout.processors for layout in self.layouts)

    def train_options(self) -> list[str]:
        ours = ["--dropout=0", f"--lr={self.lr}", f"--seed={self.seed}", f"--device={self.device}"]
        return [*ours, *shlex.split(self.options)]


@dataclass(frozen=True)
class Standing:
    """The result of one contender.

    Attributes:
        seconds: seconds per epoch over all turns; None if there is a `problem`.
        ratio: its median over that of the first that could train.
        off: largest difference between its losses and those of the first that could train.
        parts: for hpcgnn, the seconds of the parts of an epoch.
    """

    name: str
    seconds: Spread | None = None
    ratio: float | None = None
    peak_bytes: float | None = None
    loss: float | None = None
    off: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    problem: str | None = None

    def cells(self) -> list[str]:
        if self.seconds is None:
            return [self.name, self.problem or "nothing"]
        peak = "" if self.peak_bytes is None else size(self.peak_bytes)
        return [
            self.name,
            seconds(self.seconds.median),
            f"{short(self.seconds.least)}-{short(self.seconds.most)}",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            peak,
            "" if self.loss is None else f"{self.loss:.6f}",
            "" if self.off is None else f"{self.off:.1e}",
        ]


HEAD = ("", "an epoch", "least-most", "x first", "peak", "loss", "off by")


def in_turns(contenders: Sequence[Contender], turns: int) -> dict[str, list[Training]]:
    """Return all trainings by name, in alternating order; a contender that failed is skipped."""
    found: dict[str, list[Training]] = {contender.name: [] for contender in contenders}
    for turn in range(turns):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            taken = found[contender.name]
            if not taken or taken[-1].problem is None:
                warn(f"turn {turn + 1} of {turns}: {contender.name}")
                taken.append(contender.train())
    return found


def standings(found: dict[str, list[Training]]) -> list[Standing]:
    """Return the results in the given order, compared with the first contender that succeeded."""
    first: list[Training] | None = None
    rows = []
    for name, taken in found.items():
        last = taken[-1]
        if last.problem is not None:
            rows.append(Standing(name, problem=last.problem))
            continue
        spread = Spread.of([value for one in taken for value in one.seconds[WARM_UP:]])
        first = first or taken
        reference = Spread.of([value for one in first for value in one.seconds[WARM_UP:]])
        peaks = [one.peak_bytes for one in taken if one.peak_bytes is not None]
        rows.append(
            Standing(
                _named(name, last),
                spread,
                spread.median / reference.median,
                max(peaks, default=None),
                last.losses[-1],
                _off(last.losses, first[0].losses),
                last.parts,
            )
        )
    return rows


def _split(row: Standing) -> str:
    parts = ", ".join(f"{name} {seconds(value)}" for name, value in row.parts.items())
    return f"{row.name}: {parts} (the last three are parts of the first two)"


def _named(name: str, training: Training) -> str:
    """Return a name like `DGL 1.1.3` or `PyG 2.8.1 CSR`, with the peer's release."""
    own = name.split(" ")[0]
    return name.replace(own, training.release, 1) if own in training.release else name


def _off(losses: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(losses, others, strict=False))


@dataclass(frozen=True)
class EpochReport:
    """The result of `bench epoch`."""

    graph: GraphSize
    shape: ModelShape
    settings: EpochSettings
    rows: list[Standing]
    floor: Floor
    notes: list[str]

    def lines(self) -> list[str]:
        counted = f"medians of {self.settings.turns} x {self.settings.epochs} epochs"
        first = next((row.seconds for row in self.rows if row.seconds is not None), None)
        shown = [str(self.floor)]
        if first is not None:
            shown = [f"{self.floor}; the first is {first.median / self.floor.seconds:.2f} of it"]
        return [
            f"{self.shape} on {self.graph}",
            f"float32, forward + backward + Adam, {counted}, {self._where}",
            *in_columns(HEAD, [row.cells() for row in self.rows]),
            *shown,
            *(_split(row) for row in self.rows if row.parts),
            *self.notes,
        ]

    @property
    def _where(self) -> str:
        if self.settings.device == "cuda":
            return "on a GPU; peak memory there over all ranks"
        threads = f"peers with {self.settings.threads} threads"
        return f"{threads}; peak of the whole job, above imports"

    def as_json(self) -> dict[str, Any]:
        return {
            "what": "epoch",
            "graph": asdict(self.graph),
            "model": str(self.shape),
            "settings": asdict(self.settings),
            "rows": [asdict(row) for row in self.rows],
            "floor": self.floor.as_json(),
        }


def compare_epochs(
    bench: Bench, graph: Path, shape: ModelShape, settings: EpochSettings, peers: Environment | None
) -> EpochReport:
    """Train all contenders in turns, each time in a new process.

    Args:
        peers: None: only hpcgnn.

    Raises:
        InputError: the peers can't train on this graph.
        HpcgnnError: it can't be partitioned, or hpcgnn fails.
    """
    graph_size = size_of(graph)
    total = WARM_UP + settings.epochs
    options = settings.train_options()
    contenders: list[Contender] = [
        Ours(bench, graph, shape, layout, total, options) for layout in settings.layouts
    ]
    notes = []
    for layout in settings.layouts:
        bench.partitioned(graph, layout.ranks)
    if peers is not None:
        given: dict[str, object] = {
            "epochs": total,
            "lr": settings.lr,
            "threads": settings.threads,
            "memory": bench.limits.num_bytes,
            "device": settings.device,
        }
        problem = bench.write_problem(graph, shape, given, settings.seed)
        contenders += peers.contenders(problem, settings.threads, bench.limits)
    found = in_turns(contenders, settings.turns)
    rows = standings(found)
    if all(row.seconds is None for row in rows[: len(settings.layouts)]):
        raise HpcgnnError(f"bench: {rows[0].name}: {rows[0].problem}")
    if peers is None:
        notes.append("no peers: give the Python of an environment with peers by --peers")
    elif all(row.seconds is None for row in rows[len(settings.layouts) :]):
        notes.append("no peer could train: env/peers.sh makes an environment with peers")
    device = torch.device(settings.device)
    floor = measure_floor(graph_size, shape, settings.threads, device)
    if device.type == "cuda":
        notes.append(card.describe(device, floor.byte_rate))
    return EpochReport(graph_size, shape, settings, rows, floor, notes)
