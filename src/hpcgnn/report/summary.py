"""The figures of a run, from what its directory holds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError
from hpcgnn.tasks.task import shown
from hpcgnn.train.journal import MAX_EPOCH, Line, config_of, gaps, is_number, lines
from hpcgnn.train.run_directory import REQUEUE, how_it_ended

_SETS = ("train", "valid", "test")
_SECONDS = ("epoch_seconds", "forward_seconds", "backward_seconds")
_SPREAD = ("comm_wait_seconds", "bytes_sent", "peak_memory_bytes")


def summarise(folder: Path) -> dict[str, Any]:
    """The figures of a run, from metrics.jsonl, config.json and the names of the checkpoints.

    The best epoch is the one that the run chose, or the last one where nothing was validated.
    Shares are of the time of all epochs; waiting is part of forward and backward.

    Raises:
        InputError: no such folder, no epochs, or a line that is no record.
    """
    records, repeated = _records(folder)
    config = _config(folder)
    best = _best(records)
    seconds = [float(record["epoch_seconds"]) for record in records]
    total = sum(seconds)
    checkpoints = folder / "checkpoints"
    return {
        "run_dir": str(folder),
        "status": _status(folder, len(records), records[-1]["epoch"], config),
        "epochs": records[-1]["epoch"],
        "epochs_missing": gaps((r["epoch"] for r in records), records[-1]["epoch"]),
        "records_repeated": repeated,
        "epochs_asked": config.get("epochs"),
        "best_epoch": best["epoch"],
        "best_loss": best["loss"],
        **{f"best_{name}": best.get(name) for name in _SETS},
        "metric": str(best.get("metric", "accuracy")),
        "last_loss": records[-1]["loss"],
        "epoch_seconds_mean": total / len(seconds),
        "epoch_seconds_median": statistics.median(seconds),
        "forward_share": _share(records, "forward_seconds", total),
        "backward_share": _share(records, "backward_seconds", total),
        "wait_share": _share(records, "comm_wait_seconds", total),
        "bytes_per_epoch_and_rank": statistics.median(r["bytes_sent"]["mean"] for r in records),
        "peak_memory_bytes_max": max(r["peak_memory_bytes"]["max"] for r in records),
        "checkpoints": sorted(path.name for path in checkpoints.glob("[!.]*.h5")),
    }


def _records(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The last record of each epoch, rising, and how many there are besides."""
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
    if not found:
        raise InputError("holds no epoch yet", file=path)
    return [found[epoch] for epoch in sorted(found)], number - len(found)


def _checked(line: Line, path: Path) -> dict[str, Any]:
    record = line.record
    if record is not None:  # an undefined score, which is no JSON, is none
        record |= {n: None for n in _SETS if record.get(n) != record.get(n)}
    try:
        good = record is not None and all(is_number(record[name]) for name in ("loss", *_SECONDS))
        if record is not None:
            good = good and all(
                is_number(record[name][end]) for name in _SPREAD for end in ("min", "mean", "max")
            )
            good = good and all(record.get(n) is None or is_number(record[n]) for n in _SETS)
    except (KeyError, TypeError):
        good = False
    if record is None or not good:
        try:
            line.text.decode()
        except UnicodeDecodeError:
            raise InputError(f"line {line.number} is no text", file=path) from None
        raise InputError(
            f"line {line.number} is torn or no record of an epoch; `hpcgnn train --resume` drops "
            "it",
            file=path,
        )
    return record


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


def _best(records: list[dict[str, Any]]) -> dict[str, Any]:
    # Records of earlier releases don't say which was the best: then larger values are better.
    said = records[-1].get("best_epoch")
    if type(said) is int and (found := [r for r in records if r["epoch"] == said]):
        return found[0]
    scored = [r for r in records if r.get("valid") is not None]
    return max(scored, key=lambda record: record["valid"]) if scored else records[-1]


def _share(records: list[dict[str, Any]], name: str, total: float) -> float:
    values = (r[name]["mean"] if isinstance(r[name], dict) else r[name] for r in records)
    return sum(values) / total if total else 0.0


def _status(folder: Path, count: int, last: int, config: dict[str, Any]) -> str:
    if (folder / REQUEUE).exists():
        return "stopped early, to be resumed"
    ended = how_it_ended(folder)
    if ended:
        return ended
    asked, patience = config.get("epochs"), config.get("patience")
    if asked is not None and last >= asked:
        return "finished"
    if patience and count > patience:
        return "finished by patience, or running"
    return "running, or ended without a word" if asked is not None else "unknown"


def as_text(content: dict[str, Any]) -> list[str]:
    """The lines that show what `summarise` found."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    metric = content["metric"]
    scores = ", ".join(f"{name} {shown(metric, content['best_' + name])}" for name in _SETS)
    asked = content["epochs_asked"]
    rows = {
        "status": content["status"],
        "epochs": f"{content['epochs']}" + ("" if asked is None else f" of {asked}"),
        "best epoch": f"{content['best_epoch']}, loss {content['best_loss']:.4f}, {scores}",
        "last loss": f"{content['last_loss']:.4f}",
        "seconds per epoch": f"mean {content['epoch_seconds_mean']:.3f}, "
        f"median {content['epoch_seconds_median']:.3f}",
        "of that": f"forward {percent(content['forward_share'])}, "
        f"backward {percent(content['backward_share'])}, "
        f"waiting for messages {percent(content['wait_share'])}",
        "sent per epoch": f"{content['bytes_per_epoch_and_rank'] / 1e6:,.1f} MB per rank",
        "peak memory": f"{content['peak_memory_bytes_max'] / 1e6:,.1f} MB on the largest rank, "
        "imports included",
        "checkpoints": ", ".join(content["checkpoints"]) or "none",
    }
    if content["epochs_missing"]:
        rows["no record of"] = f"epoch {content['epochs_missing']}"
    if content["records_repeated"]:
        rows["repeated"] = f"{content['records_repeated']} records, of which the last counts"
    width = max(map(len, rows))
    return [f"{content['run_dir']}:", *(f"  {k.ljust(width)}  {v}" for k, v in rows.items())]
