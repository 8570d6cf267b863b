"""What an evaluation found, and what of it chooses the best epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks.metric_names import larger_is_better
from hpcgnn.tasks.task import SPLITS, Task
from hpcgnn.train.config import TrainingSettings

Scores = dict[str, dict[str, float | None]]  # by split, by metric; None where undefined
LOSSES = ("loss", "valid_loss")


@dataclass(frozen=True)
class Monitor:
    """What chooses the best epoch and ends by patience.

    Attributes:
        name: a metric of the validation nodes, `loss` or `valid_loss`.
        larger: whether larger values are better.
    """

    name: str
    larger: bool

    @staticmethod
    def of(training: TrainingSettings, task: Task) -> Monitor:
        """As the settings say, or the task.

        Raises:
            InputError: which values are better isn't known.
        """
        name = task.metric if training.monitor == "auto" else training.monitor
        if training.better != "auto":
            return Monitor(name, training.better == "larger")
        if name in LOSSES:
            return Monitor(name, False)
        if name == task.metric:
            return Monitor(name, task.larger_is_better)
        known = larger_is_better(name)
        if known is None:
            raise InputError(
                f"--monitor {name} needs --better larger or --better smaller, since the task "
                f"doesn't choose by it but by {task.metric}"
            )
        return Monitor(name, known)

    @property
    def shown(self) -> str:
        return self.name if self.name in LOSSES else f"valid {self.name}"

    def choose(self, record: dict[str, Any], scores: Scores) -> float | None:
        """The value of an evaluated epoch.

        Raises:
            InputError: the task has no metric of this name.
        """
        if self.name in LOSSES:
            value: float | None = record[self.name]
            return value
        if self.name not in scores["valid"]:
            raise InputError(
                "--monitor is no metric of the task, which has "
                f"{', '.join(scores['valid'])}, loss and valid_loss",
                value=self.name,
            )
        return scores["valid"][self.name]

    def at_test(self, scores: Scores) -> float | None:
        return scores["test"].get(self.name)


def score(graph: PartitionedGraph, task: Task, output: Tensor, rows: dict[str, Tensor]) -> Scores:
    """All metrics of all splits; collective.

    Raises:
        InputError: the task's metrics are no numbers, or lack the one that it names.
    """
    found: Scores = {}
    for split in SPLITS:
        metrics = task.metrics(graph, output[rows[split]], rows[split], split)
        if not isinstance(metrics, dict) or task.metric not in metrics:
            raise InputError(
                f"the task's metrics must be a dictionary of numbers with {task.metric} among them",
                value=metrics,
            )
        found[split] = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
    return found


def checked_rows(rows: Any, split: str, count: int | None = None) -> Tensor:
    """What a task's `targets` returned.

    Raises:
        InputError: no int64 `[m]`, or one outside the output's `count` rows.
    """
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        kind = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows)
        raise InputError(f"the task's targets of {split} must be int64 [m]", value=str(kind))
    if count is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise InputError(
            f"the task's targets of {split} must be rows of the model's output, 0 .. {count - 1}",
            value=int(rows.max()),
        )
    return rows


def check_output(output: Tensor, place: Tensor, task: Task) -> None:
    """Rows of the training targets are there, and as many columns as the task asks for.

    Raises:
        InputError: they are not.
    """
    checked_rows(place, "train", len(output))
    wanted = task.num_outputs
    if wanted is not None and (output.dim() != 2 or output.shape[1] < wanted):
        raise InputError(
            f"the model must return {wanted} numbers per node for this task",
            value=tuple(output.shape),
        )
