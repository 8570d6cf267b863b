"""Several runs side by side: what their settings differ in, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcgnn.report.summary import summarise
from hpcgnn.tasks.task import shown
from hpcgnn.train.journal import config_of

_LONGEST = 40


def compare(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The figures of each run, and under `differs` the settings that are not the same in all.

    Raises:
        InputError: as `summarise`.
    """
    found = [summarise(folder) for folder in folders]
    configs = [config_of(folder) or {} for folder in folders]
    names = sorted(set().union(*configs))
    differing = [n for n in names if any(c.get(n) != configs[0].get(n) for c in configs)]
    for content, config in zip(found, configs, strict=True):
        content["differs"] = {name: config.get(name) for name in differing}
    return found


def as_table(runs: list[dict[str, Any]]) -> list[str]:
    """Lines of a table, a run in each."""
    rows = [["run", *runs[0]["differs"], "epochs", "best", "loss", "valid", "test", "s/epoch"]]
    for run in runs:
        rows.append(
            [
                run["run_dir"],
                *(str(value)[:_LONGEST] for value in run["differs"].values()),
                str(run["epochs"]),
                str(run["best_epoch"]),
                f"{run['best_loss']:.4f}",
                shown(run["metric"], run["best_valid"]),
                shown(run["metric"], run["best_test"]),
                f"{run['epoch_seconds_mean']:.3f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
