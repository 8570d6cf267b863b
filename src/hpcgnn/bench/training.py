"""Trainings of hpcgnn and of peers, and their results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from hpcgnn import system
from hpcgnn.bench import job
from hpcgnn.bench import peer as peer_script
from hpcgnn.bench.job import Layout, Limits
from hpcgnn.bench.problem import Bench, ModelShape
from hpcgnn.train import journal
from hpcgnn.version import __version__

_PARTS = {
    "forward": "forward_seconds",
    "backward": "backward_seconds",
    "all-reduce": "reduce_seconds",
    "packing": "pack_seconds",
    "waiting": "comm_wait_seconds",
}
_FEWEST = 2  # epochs: the first one may not be counted
_UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_SIZE = r"([\d.]+) (B|kB|MB|GB|TB)"
_PEAKS = re.compile(  # of one rank: its peak; of several: least, most and total
    rf"^peak memory above imports: (?:(?:{_SIZE} to )?{_SIZE} per rank, )?{_SIZE}(?: in all)?;",
    re.M,
)


@dataclass(frozen=True)
class Training:
    """The result of one training. `problem` says in a few words why there is none.

    Attributes:
        seconds, losses: by epoch.
        peak_bytes: above the imports, of all processes together; None if unknown.
        rank_bytes: the same of the largest process.
        sent_bytes: bytes sent by all ranks in an epoch.
        scores: of the validation nodes, by epoch, if they were evaluated.
        parts: seconds of the parts of an epoch, means over the ranks.
        release: name and version of the library.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: float | None = None
    rank_bytes: float | None = None
    sent_bytes: float = 0.0
    scores: list[float | None] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    release: str = ""
    problem: str | None = None


class Contender(Protocol):
    """A library that can train, in one configuration."""

    @property
    def name(self) -> str: ...

    def train(self) -> Training: ...


@dataclass(frozen=True)
class Ours:
    """A training by `hpcgnn train` on a partition.

    Args:
        options: options of `train`, besides those of the model.
    """

    bench: Bench
    graph: Path
    shape: ModelShape
    layout: Layout
    epochs: int
    options: Sequence[str] = ()
    eval_every: int = 0  # 0: only after the last epoch

    @property
    def name(self) -> str:
        return f"hpcgnn, {self.layout}"

    def train(self) -> Training:
        run = self.bench.fresh("run")
        arguments = [
            "train",
            self.bench.partitioned(self.graph, self.layout.ranks),
            *self.shape.options(),
            f"--epochs={self.epochs}",
            f"--eval-every={self.eval_every or self.epochs}",
            "--checkpoint-every=0",
            f"--run-dir={run}",
            *self.options,
        ]
        ended = job.ours(arguments, self.layout, self.bench.limits)
        if ended.problem is not None:
            return Training(problem=ended.problem)
        training = read_run(run, ended.output)
        number = len(training.seconds)
        if training.problem is None and number < min(self.epochs, _FEWEST):
            return Training(problem=f"trained {number} of {self.epochs} epochs: see --options")
        return training


def read_run(run: Path, output: str) -> Training:
    """Return the training that metrics.jsonl and the printed lines of `train` describe."""
    records: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        records = [line.record for line in journal.lines(run / "metrics.jsonl") if line.record]
    peaks = _PEAKS.search(output)
    if not records or peaks is None:
        return Training(problem="its run wrote no results")
    total = float(peaks[5]) * _UNITS[peaks[6]]
    return Training(
        seconds=[record["epoch_seconds"] - record["evaluate_seconds"] for record in records],
        losses=[record["loss"] for record in records],
        peak_bytes=total,
        rank_bytes=total if peaks[3] is None else float(peaks[3]) * _UNITS[peaks[4]],
        # Without those of an evaluation, where some epochs have none.
        sent_bytes=min(record["bytes_sent"]["mean"] for record in records) * _ranks(run),
        scores=[record.get("valid") for record in records],
        parts=_parts(records),
        release=f"hpcgnn {__version__}",
    )


def _parts(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians over all epochs but the first, which is a warm-up."""
    found = {}
    for name, key in _PARTS.items():
        values = [record.get(key) for record in records[1:] or records]
        means = [value["mean"] if isinstance(value, dict) else value for value in values]
        known = [float(m) for m in means if m is not None and journal.is_number(m)]
        if known:
            found[name] = median(known)
    return found


def _ranks(run: Path) -> int:
    with suppress(FileNotFoundError):
        for start in journal.json_lines(run / "starts.jsonl"):
            if start is not None:
                return int(start["ranks"])
    return 1


@dataclass(frozen=True)
class Environment:
    """A Python environment that has peers, and the names of those to train."""

    python: Path
    names: tuple[str, ...]

    def contenders(self, problem: Path, threads: int, limits: Limits) -> list[Contender]:
        return [PeerTraining(name, self.python, problem, threads, limits) for name in self.names]


@dataclass(frozen=True)
class PeerTraining:
    """A training of one of `peer.PEERS` or `peer.SAMPLERS`, in its own environment.

    Args:
        python: the Python of that environment.
        problem: the folder written by `Bench.write_problem`.
    """

    name: str
    python: Path
    problem: Path
    threads: int
    limits: Limits

    def train(self) -> Training:
        script = str(Path(peer_script.__file__).resolve())
        command = [str(self.python), "-P", script, self.name, str(self.problem)]
        env = job.environment(self.threads, system.without()) | {"DGLBACKEND": "pytorch"}
        return read_answer(job.answer(job.run(command, env, self.limits)))


def read_answer(answer: dict[str, Any]) -> Training:
    """Return the training of a peer's answer, which may have any content."""
    if isinstance(answer.get("problem"), str):
        return Training(problem=answer["problem"])
    try:
        seconds, losses = ([float(v) for v in answer[name]] for name in ("seconds", "losses"))
        peak = float(answer["peak"]) - float(answer["imports"])
        scores = [None if v is None else float(v) for v in answer.get("scores", [])]
        release = str(answer["release"])
    except (KeyError, TypeError, ValueError) as error:
        return Training(
            problem=f"its answer is not a JSON object of results ({json.dumps(str(error))[:80]})"
        )
    if not seconds or len(seconds) != len(losses):
        return Training(problem="its answer is not a JSON object of results: no epochs")
    return Training(
        seconds, losses, peak_bytes=peak, rank_bytes=peak, scores=scores, release=release
    )
