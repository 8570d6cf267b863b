"""The numbers of a run in one table, the parts of its time, and comparisons of several runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcgnn.report.run import SETS, RunFiles, read_run
from hpcgnn.tasks.settings import shown
from hpcgnn.train.journal import gaps
from hpcgnn.train.run_directory import REQUEUE, how_it_ended

# Labels of the parts, as legends show them.
PARTS = {
    "compute": "compute",
    "pack": "packing",
    "wait": "waiting for messages",
    "reduce": "all-reduce of gradients",
    "evaluate": "evaluation",
    "checkpoint": "checkpoint",
    "other": "other",
}
_ABSENT = "-"
COLUMNS = {
    "ranks": "ranks",
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "best_valid": "valid",
    "best_test": "test",
    "last_loss": "last loss",
    "epoch_seconds_median": "s/epoch",
    "peak_memory_bytes_max": "peak MB",
}


def _split(seconds: dict[str, float]) -> dict[str, float]:
    """Split measured seconds into parts; packing and waiting are subtracted from the passes."""
    passes = seconds["forward"] + seconds["backward"]
    reduce, evaluate, checkpoint = (seconds[n] for n in ("reduce", "evaluate", "checkpoint"))
    pack, wait = seconds["pack"], seconds["wait"]
    # Evaluation sends messages too, so it gets its share of packing and waiting.
    inner = max(passes - reduce, 0.0)
    share = inner / (inner + evaluate) if inner + evaluate else 0.0
    pack, wait = min(share * pack, inner), min(share * wait, inner)
    pack, wait = (pack, wait) if pack + wait <= inner else (pack, max(inner - pack, 0.0))
    parts = {
        "compute": inner - pack - wait,
        "pack": pack,
        "wait": wait,
        "reduce": min(reduce, passes),
        "evaluate": evaluate,
        "checkpoint": checkpoint,
    }
    return parts | {"other": max(seconds["epoch"] - sum(parts.values()), 0.0)}


def per_epoch(record: dict[str, Any]) -> dict[str, float]:
    """Return seconds by part, from one record of metrics.jsonl, as means over the ranks.

    Values that older records lack count as zero.
    """

    def value(name: str) -> float:
        number = record.get(name, 0.0)
        return float(number["mean"] if isinstance(number, dict) else number or 0.0)

    checkpoint = value("checkpoint_seconds")
    return _split(
        {
            # A checkpoint is written after the epoch's own timer has stopped.
            "epoch": value("epoch_seconds") + checkpoint,
            "forward": value("forward_seconds"),
            "backward": value("backward_seconds"),
            "reduce": value("reduce_seconds"),
            "evaluate": value("evaluate_seconds"),
            "checkpoint": checkpoint,
            "pack": value("pack_seconds"),
            "wait": value("comm_wait_seconds"),
        }
    )


def per_rank(run: RunFiles) -> dict[str, list[float]]:
    """Return seconds by part for each rank, in the last epoch recorded by rank; else empty."""
    if run.ranks is None or "forward_seconds" not in run.ranks.numbers:
        return {}
    numbers = run.ranks.numbers
    count = len(numbers["forward_seconds"])
    none = [0.0] * count
    columns = {
        "epoch": numbers.get("epoch_seconds", none),
        "forward": numbers["forward_seconds"],
        "backward": numbers.get("backward_seconds", none),
        "reduce": numbers.get("reduce_seconds", none),
        "evaluate": numbers.get("evaluate_seconds", none),
        "checkpoint": none,
        "pack": numbers.get("pack_seconds", none),
        "wait": numbers.get("comm_wait_seconds", none),
    }
    splits = [_split({n: values[rank] for n, values in columns.items()}) for rank in range(count)]
    return {part: [split[part] for split in splits] for part in PARTS}


def summarise(run: RunFiles | Path) -> dict[str, Any]:
    """Return the numbers of a run.

    The best epoch is the one that the run chose, or the last one if none was validated. Shares are
    of the time of all epochs; waiting is part of forward and backward.

    Raises:
        InputError: as `read_run`.
    """
    run = read_run(run) if isinstance(run, Path) else run
    if not run.records:
        return _not_begun(run)
    records, best = run.records, run.best
    seconds = [float(record["epoch_seconds"]) for record in records]
    total = sum(seconds)
    return {
        "run_dir": str(run.folder),
        "status": _status(run),
        "ranks": _ranks(run),
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


def _not_begun(run: RunFiles) -> dict[str, Any]:
    """What `summarise` finds before the end of the first epoch."""
    names = ("epoch", "loss", *SETS)
    return {
        "run_dir": str(run.folder),
        "status": _status(run),
        "ranks": _ranks(run),
        "epochs": 0,
        "epochs_missing": "",
        "records_repeated": run.repeated,
        "epochs_asked": run.settings().get("epochs"),
        "metric": metric_of(run),
        **dict.fromkeys(f"best_{name}" for name in names),
        **dict.fromkeys(("last_loss", "epoch_seconds_mean", "epoch_seconds_median")),
        **dict.fromkeys(("forward_share", "backward_share", "wait_share")),
        **dict.fromkeys(("bytes_per_epoch_and_rank", "peak_memory_bytes_max")),
        "checkpoints": run.checkpoints,
    }


def _ranks(run: RunFiles) -> int | None:
    """The number of ranks since the last start; None if it was not recorded."""
    ranks = run.starts[-1].get("ranks") if run.starts else None
    return ranks if type(ranks) is int else None


def metric_of(run: RunFiles) -> str:
    """Return the name of the metric of a run."""
    name = (run.records[-1] if run.records else {}).get("metric") or run.settings().get("metric")
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
    settings, last = run.settings(), run.records[-1]["epoch"] if run.records else 0
    asked, patience = settings.get("epochs"), settings.get("patience")
    if type(asked) is int and last >= asked:
        return "finished"
    if type(patience) is int and patience and len(run.records) > patience:
        return "finished by patience, or still running"
    return "still running, or ended without a message" if asked is not None else "unknown"


def as_text(content: dict[str, Any]) -> list[str]:
    """Return the lines that show the results of `summarise`."""
    asked = content["epochs_asked"]
    rows = {
        "status": content["status"],
        "epochs": f"{content['epochs']}" + ("" if asked is None else f" of {asked}"),
        **(_measured(content) if content["epochs"] else {}),
        "checkpoints": ", ".join(content["checkpoints"]) or "none",
    }
    if content["epochs_missing"]:
        rows["no record of"] = f"epoch {content['epochs_missing']}"
    if content["records_repeated"]:
        rows["repeated"] = f"{content['records_repeated']} records, of which the last one counts"
    width = max(map(len, rows))
    return [f"{content['run_dir']}:", *(f"  {k.ljust(width)}  {v}" for k, v in rows.items())]


def _measured(content: dict[str, Any]) -> dict[str, str]:
    """Rows of `as_text` about the epochs."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    metric = content["metric"]
    scores = ", ".join(f"{name} {shown(metric, content['best_' + name])}" for name in SETS)
    return {
        "best epoch": f"{content['best_epoch']}, loss {content['best_loss']:.4f}, {scores}",
        "last loss": f"{content['last_loss']:.4f}",
        "seconds per epoch": f"mean {content['epoch_seconds_mean']:.3f}, "
        f"median {content['epoch_seconds_median']:.3f}",
        "of that": f"forward {percent(content['forward_share'])}, "
        f"backward {percent(content['backward_share'])}; of the whole epoch, waiting "
        f"for messages {percent(content['wait_share'])}",
        "sent per epoch": f"{content['bytes_per_epoch_and_rank'] / 1e6:,.1f} MB per rank",
        "peak memory": f"{content['peak_memory_bytes_max'] / 1e6:,.1f} MB on the largest rank, "
        "imports included",
    }


def differing(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Return settings that differ between runs: by name a value per run, None if absent."""
    settings = [run.settings() for run in runs]
    names = sorted({name for each in settings for name in each})
    values = {name: [each.get(name) for each in settings] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def reached(runs: Sequence[RunFiles]) -> list[list[str]]:
    """Return a row of texts per run: its folder, then the values of `COLUMNS`."""
    rows = []
    for run in runs:
        content = summarise(run)
        cells = [_cell(name, content[name], content["metric"]) for name in COLUMNS]
        rows.append([str(run.folder), *cells])
    return rows


def _cell(name: str, value: Any, metric: str) -> str:
    if name in ("best_valid", "best_test"):
        return shown(metric, value)
    if value is None:
        return _ABSENT
    if name == "peak_memory_bytes_max":
        return f"{value / 1e6:,.0f}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def comparison(runs: Sequence[RunFiles]) -> list[str]:
    """Return the lines of two tables: the results of the runs, and their differing settings."""
    lines = _table([["run", *COLUMNS.values()], *reached(runs)])
    rows = differing(runs)
    if not rows:
        return [*lines, "", "all settings are the same"]
    head = ["setting", *(run.folder.name for run in runs)]
    body = [[name, *map(_shown, values)] for name, values in rows.items()]
    return [*lines, "", "settings that differ:", *_table([head, *body])]


def _shown(value: Any) -> str:
    return _ABSENT if value is None else str(value)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
