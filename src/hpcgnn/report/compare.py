"""Several runs beside each other: what they reached, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcgnn.report.run import RunFiles
from hpcgnn.report.summary import summarise
from hpcgnn.tasks.metric_names import shown

_ABSENT = "-"
COLUMNS = {
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "best_valid": "valid",
    "best_test": "test",
    "last_loss": "last loss",
    "epoch_seconds_median": "s/epoch",
    "peak_memory_bytes_max": "peak MB",
}


def differing(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs: a value per run, by name; None where absent."""
    settings = [run.settings() for run in runs]
    names = sorted({name for each in settings for name in each})
    values = {name: [each.get(name) for each in settings] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def reached(runs: Sequence[RunFiles]) -> list[list[str]]:
    """A row of text per run, as `COLUMNS` name them, after the run's folder."""
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


def as_text(runs: Sequence[RunFiles]) -> list[str]:
    """Two tables: what the runs reached, and where their settings differ."""
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
