"""The content of a run directory: the files that training writes there, each line checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError, counted
from hpcgnn.train.journal import MAX_EPOCH, Line, config_of, is_number, json_lines, lines
from hpcgnn.train.run_directory import how_it_ended

SETS = ("train", "valid", "test")
SECONDS = ("epoch_seconds", "forward_seconds", "backward_seconds")
SPREAD = ("comm_wait_seconds", "bytes_sent", "peak_memory_bytes")
_MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class RankNumbers:
    """Numbers of every rank in the last epoch that has them, each list of length P.

    `sent_to[r][p]` are the bytes that rank r sent to rank p in that epoch; None if the run has too
    many ranks to record it.
    """

    epoch: int
    numbers: dict[str, list[float]]
    sent_to: list[list[int]] | None


@dataclass(frozen=True)
class Resumption:
    """Where a run went on: after `epoch`; `ranks` where they are others than before it."""

    epoch: int
    ranks: int | None

    def __str__(self) -> str:
        return "resumed" if self.ranks is None else f"resumed on {counted(self.ranks, 'rank')}"


@dataclass(frozen=True)
class RunFiles:
    """A run, read once.

    Attributes:
        records: the last record of each epoch, rising; none where no epoch has ended yet.
        repeated: records there are besides.
        config: settings by name, in sections or flat as they were written.
        starts: the record of each start of the run: time, hosts, ranks, graph, releases.
        ranks: None for runs that recorded none.
    """

    folder: Path
    records: list[dict[str, Any]]
    repeated: int
    config: dict[str, Any]
    starts: list[dict[str, Any]] = field(default_factory=list)
    ranks: RankNumbers | None = None

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").glob("[!.]*.h5"))

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch of the run, or the last one if none was chosen."""
        # Records of earlier releases don't name the best epoch: larger validation scores are
        # better.
        said = self.records[-1].get("best_epoch")
        found = [record for record in self.records if record["epoch"] == said]
        if type(said) is int and found:
            return found[0]
        scored = [record for record in self.records if record.get("valid") is not None]
        return max(scored, key=lambda record: record["valid"], default=self.records[-1])

    @property
    def resumptions(self) -> list[Resumption]:
        """Those whose epochs are in the records, rising; an epoch trained again counts once."""
        found: list[tuple[int, int]] = []
        for start in self.starts:
            epoch, ranks = start.get("from_epoch"), start.get("ranks")
            if type(epoch) is int and type(ranks) is int:
                found = [(before, count) for before, count in found if before < epoch]
                found.append((epoch, ranks))
        first, last = self.records[0]["epoch"], self.records[-1]["epoch"]
        return [
            Resumption(epoch, ranks if ranks != former else None)
            for (_, former), (epoch, ranks) in pairwise(found)
            if first <= epoch < last
        ]

    def settings(self) -> dict[str, Any]:
        """Return the settings by name, without their sections."""
        flat: dict[str, Any] = {}
        for name, value in self.config.items():
            flat |= value if isinstance(value, dict) else {name: value}
        return flat


def read_run(folder: Path) -> RunFiles:
    """Return the run that is recorded in `folder`.

    Raises:
        InputError: no such folder, no run, a line that is no record, or epochs without any.
    """
    records, repeated = _records(folder)
    run = RunFiles(folder, records, repeated, _config(folder), _starts(folder), _ranks(folder))
    asked = run.settings().get("epochs")
    if not records and (
        type(asked) is not int or (asked > 0 and how_it_ended(folder).startswith("finished"))
    ):
        raise InputError("holds no record of an epoch", file=folder / "metrics.jsonl")
    return run


def _records(folder: Path) -> tuple[list[dict[str, Any]], int]:
    path = folder / "metrics.jsonl"
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    found: dict[int, dict[str, Any]] = {}
    number = 0
    try:
        for line in lines(path):
            number = line.number
            record = _checked(line, path)
            found[record["epoch"]] = record
    except FileNotFoundError:
        raise InputError("has no metrics.jsonl: not a run directory", file=folder) from None
    return [found[epoch] for epoch in sorted(found)], number - len(found)


def _checked(line: Line, path: Path) -> dict[str, Any]:
    record = line.record
    if record is None:
        try:
            line.text.decode()
        except UnicodeDecodeError:
            raise InputError(f"line {line.number} is not text", file=path) from None
        raise InputError(
            f"line {line.number} was cut off or is not a record of an epoch; `hpcgnn train "
            "--resume` drops it",
            file=path,
        )
    record |= {n: None for n in SETS if record.get(n) != record.get(n)}  # undefined: no JSON
    for name in {"loss", *SECONDS, *SPREAD, *filter(_is_numeric, record)}:
        optional = name not in ("loss", *SECONDS, *SPREAD)
        value = record.get(name)
        if (optional and value is None) or (is_number(value) and name not in SPREAD):
            continue
        ends = value if isinstance(value, dict) else {}
        if not all(is_number(ends.get(end)) for end in ("min", "mean", "max")):
            raise InputError(
                f"line {line.number} is not a record of an epoch: must be a number",
                file=path,
                dataset=name,
                value=value,
            )
    return record


def _is_numeric(name: str) -> bool:
    return name in ("lr", *SETS) or name.endswith("_seconds")


def _config(folder: Path) -> dict[str, Any]:
    config = config_of(folder) or {}
    for name in ("epochs", "patience"):
        value = config.get(name)
        if value is not None and (type(value) is not int or abs(value) > MAX_EPOCH):
            raise InputError(
                "must be a number of epochs",
                file=folder / "config.json",
                dataset=name,
                value=type(value).__name__,
            )
    return config


def _starts(folder: Path) -> list[dict[str, Any]]:
    """Return the records of starts, without torn lines; empty for older runs."""
    try:
        return [start for start in json_lines(folder / "starts.jsonl") if start is not None]
    except FileNotFoundError:
        return []


def _ranks(folder: Path) -> RankNumbers | None:
    last: dict[str, Any] | None = None
    matrix: list[list[int]] | None = None
    try:
        for line in lines(folder / "ranks.jsonl"):
            if line.record is not None:
                last = line.record
                matrix = _matrix(last.get("sent_to")) or matrix
    except FileNotFoundError:
        return None
    if last is None:
        return None
    numbers = {
        name: values
        for name, values in last.items()
        if name != "sent_to"
        and isinstance(values, list)
        and 0 < len(values) <= _MOST_RANKS
        and all(is_number(value) for value in values)
    }
    count = len(next(iter(numbers.values()), []))
    if not count or any(len(values) != count for values in numbers.values()):
        raise InputError("its last line has not one number per rank", file=folder / "ranks.jsonl")
    if matrix is not None and len(matrix) != count:
        matrix = None
    return RankNumbers(last["epoch"], numbers, matrix)


def _matrix(value: object) -> list[list[int]] | None:
    if not isinstance(value, list):
        return None
    square = all(isinstance(row, list) and len(row) == len(value) for row in value)
    return value if square and all(is_number(n) for row in value for n in row) else None


def read_quality(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last recorded quality of the partition; empty if there is none."""
    for start in reversed(starts):
        partition = start.get("partition")
        if isinstance(partition, dict):
            return partition
    return {}
