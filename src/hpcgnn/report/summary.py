"""The figures of a run in one table."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from hpcgnn.report.run import SETS, RunFiles, read_run
from hpcgnn.tasks.metric_names import shown
from hpcgnn.train.journal import gaps
from hpcgnn.train.run_directory import REQUEUE, how_it_ended


def summarise(run: RunFiles | Path) -> dict[str, Any]:
    """The figures of a run.

    The best epoch is the one that the run chose, or the last one where nothing was validated.
    Shares are of the time of all epochs; waiting is part of forward and backward.

    Raises:
        InputError: as `read_run`.
    """
    run = read_run(run) if isinstance(run, Path) else run
    records, best = run.records, run.best
    seconds = [float(record["epoch_seconds"]) for record in records]
    total = sum(seconds)
    return {
        "run_dir": str(run.folder),
        "status": _status(run),
        "epochs": records[-1]["epoch"],
        "epochs_missing": gaps((r["epoch"] for r in records), records[-1]["epoch"]),
        "records_repeated": run.repeated,
        "epochs_asked": run.settings().get("epochs"),
        "metric": metric_of(run),
        "best_epoch": best["epoch"],
        "best_loss": best["loss"],
        **{f"best_{name}": best.get(name) for name in SETS},
        "last_loss": records[-1]["loss"],
        "epoch_seconds_mean": total / len(seconds),
        "epoch_seconds_median": statistics.median(seconds),
        "forward_share": _share(records, "forward_seconds", total),
        "backward_share": _share(records, "backward_seconds", total),
        "wait_share": _share(records, "comm_wait_seconds", total),
        "bytes_per_epoch_and_rank": statistics.median(r["bytes_sent"]["mean"] for r in records),
        "peak_memory_bytes_max": max(r["peak_memory_bytes"]["max"] for r in records),
        "checkpoints": run.checkpoints,
    }


def metric_of(run: RunFiles) -> str:
    """The name of what was scored."""
    name = run.records[-1].get("metric") or run.settings().get("metric")
    return name if isinstance(name, str) and name != "auto" else "accuracy"


def _share(records: list[dict[str, Any]], name: str, total: float) -> float:
    values = (r[name]["mean"] if isinstance(r[name], dict) else r[name] for r in records)
    return sum(values) / total if total else 0.0


def _status(run: RunFiles) -> str:
    if (run.folder / REQUEUE).exists():
        return "stopped early, to be resumed"
    ended = how_it_ended(run.folder)
    if ended:
        return ended
    settings, last = run.settings(), run.records[-1]["epoch"]
    asked, patience = settings.get("epochs"), settings.get("patience")
    if type(asked) is int and last >= asked:
        return "finished"
    if type(patience) is int and patience and len(run.records) > patience:
        return "finished by patience, or running"
    return "running, or ended without a word" if asked is not None else "unknown"


def as_text(content: dict[str, Any]) -> list[str]:
    """The lines that show what `summarise` found."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    metric = content["metric"]
    scores = ", ".join(f"{name} {shown(metric, content['best_' + name])}" for name in SETS)
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
