"""Scores of an evaluation, the choice of the best epoch, and patience."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcgnn.errors import InputError, counted
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks.settings import larger_is_better, shown
from hpcgnn.tasks.task import SPLITS, Labelled, Task
from hpcgnn.train.settings import TrainingSettings

Scores = dict[str, dict[str, float | None]]  # by split, by metric; None where undefined
LOSSES = ("loss", "valid_loss")


@dataclass(frozen=True)
class Monitor:
    """The quantity that determines the best epoch, and early stopping by patience.

    Attributes:
        name: a metric of the validation nodes, `loss` or `valid_loss`.
        larger: whether larger values are better.
    """

    name: str
    larger: bool

    @staticmethod
    def of(training: TrainingSettings, task: Task) -> Monitor:
        """Return the monitor in the settings, or that of the task.

        Raises:
            InputError: which values are better isn't known, or the task has no such loss.
        """
        name = task.metric if training.monitor == "auto" else training.monitor
        if name == "valid_loss" and not getattr(task, "has_valid_loss", True):
            raise InputError(
                "--monitor valid_loss is for tasks on nodes: on edges and links only those of "
                "training have a loss; choose loss, or a metric"
            )
        if training.better != "auto":
            return Monitor(name, training.better == "larger")
        if name in LOSSES:
            return Monitor(name, False)
        if name == task.metric:
            return Monitor(name, task.larger_is_better)
        known = larger_is_better(name)
        if known is None:
            raise InputError(
                f"--monitor {name} needs --better larger or --better smaller, since the task's own "
                f"metric is {task.metric}"
            )
        return Monitor(name, known)

    @property
    def shown(self) -> str:
        return self.name if self.name in LOSSES else f"valid {self.name}"

    def is_defined(self, graph: PartitionedGraph, task: Task) -> bool:
        """Return whether epochs get a value for comparison; collective."""
        if self.name == "loss":
            return True
        if self.name == "valid_loss":
            count = len(task.targets(graph, "valid"))
            return graph.comm.allreduce(count, where="nodes to be scored") > 0
        return task.is_scored(graph, "valid")

    def choose(self, record: dict[str, Any], scores: Scores) -> float | None:
        """Return the monitored value of an evaluated epoch.

        Raises:
            InputError: the task has no metric of this name.
        """
        if self.name in LOSSES:
            value: float | None = record[self.name]
            return value
        if self.name not in scores["valid"]:
            raise InputError(
                f"--monitor is not a metric of the task, which has {', '.join(scores['valid'])}, "
                "loss and valid_loss",
                value=self.name,
            )
        return scores["valid"][self.name]

    def at_test(self, scores: Scores) -> float | None:
        return scores["test"].get(self.name)


def score(graph: PartitionedGraph, task: Task, output: Tensor, rows: dict[str, Tensor]) -> Scores:
    """Return all metrics of all splits; collective.

    Raises:
        InputError: the task's metrics are not numbers, or lack the one that it names.
    """
    found: Scores = {}
    for split in SPLITS:
        metrics = task.metrics(graph, picked(output, rows[split]), rows[split], split)
        found[split] = {
            name: value if math.isfinite(value) else None
            for name, value in checked_metrics(metrics, task).items()
        }
    return found


def checked_metrics(metrics: Any, task: Task) -> dict[str, float]:
    """Return what a task's `metrics` returned, as numbers.

    Raises:
        InputError: one is no number, or the metric that the task names is missing.
    """
    if isinstance(metrics, dict) and task.metric in metrics:
        try:
            return {str(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError, RuntimeError):
            pass
    raise InputError(
        f"the task's metrics must be a dictionary of numbers with {task.metric} among them",
        value=metrics,
    )


def picked(output: Tensor, rows: Tensor) -> Tensor:
    """Return `output[rows]`, on a CPU several times as fast, also in backward.

    On a GPU torch adds up the gradients of `index_select` in any order.
    """
    return output[rows] if output.is_cuda else output.index_select(0, rows)


def rows_by_split(task: Task, graph: PartitionedGraph, *, own_losses: bool) -> dict[str, Tensor]:
    """Return the targets of each split; collective.

    Args:
        own_losses: what is trained on isn't the task's loss.

    Raises:
        InputError: they are no row numbers, or the task's loss can't be of those of training.
    """
    most = graph.num_local_nodes if isinstance(task, Labelled) else None
    rows = {split: checked_rows(task.targets(graph, split), split, most) for split in SPLITS}
    if not own_losses:
        task.check_targets(graph, rows["train"])
    return rows


def checked_rows(rows: Any, split: str, count: int | None = None) -> Tensor:
    """Return what a task's `targets` returned, after checks.

    Raises:
        InputError: it is not int64 `[m]`, or has one outside the output's `count` rows (None: as
            many as are named).
    """
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        kind = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows)
        raise InputError(f"the task's targets of {split} must be int64 [m]", value=str(kind))
    if not len(rows):
        return rows
    least, most = int(rows.min()), int(rows.max())
    if least < 0 or (count is not None and most >= count):
        which = "" if count is None else f", which has {count:,}"
        raise InputError(
            f"the task's targets of {split} must be rows of the model's output{which}",
            value=least if least < 0 else most,
        )
    return rows


def check_output(output: Tensor, place: Tensor, task: Task) -> None:
    """Check that the output has the rows of the training targets and the columns of the task.

    Raises:
        InputError: it doesn't, or is not made of floating-point numbers.
    """
    checked_rows(place, "train", len(output))
    if not output.is_floating_point():
        raise InputError("the model must return floating-point numbers", value=str(output.dtype))
    wanted = task.num_outputs
    if wanted is not None and (output.dim() != 2 or output.shape[1] < wanted):
        raise InputError(
            f"the model must return {wanted} numbers per node for this task",
            value=tuple(output.shape),
        )


@dataclass
class Progress:
    """The best validation so far; stored in every checkpoint.

    Attributes:
        best: its score, None before the first.
        best_epoch: its epoch, 0 before the first.
        test_at_best: the test score of that epoch, None if undefined.
        waited: epochs since the best that led to evaluations with a score, but no better one.
        evaluated: epoch of the last evaluation.
        larger: whether larger scores are better.
    """

    best: float | None = None
    best_epoch: int = 0
    test_at_best: float | None = None
    waited: int = 0
    evaluated: int = 0
    larger: bool = True

    def note(self, epoch: int, valid: float | None, test: float | None) -> bool:
        """Record an evaluation and return whether it is the best; without a score it is ignored."""
        since, self.evaluated = epoch - self.evaluated, epoch
        if valid is None:
            return False
        if self.best is not None and not self._better(valid, self.best):
            self.waited += since
            return False
        self.best, self.best_epoch, self.test_at_best, self.waited = valid, epoch, test, 0
        return True

    def _better(self, score: float, best: float) -> bool:
        return score > best if self.larger else score < best

    def ran_out(self, patience: int) -> bool:
        """Return whether `patience` epochs brought no better validation; always False for 0."""
        return 0 < patience <= self.waited

    def reason(self, patience: int) -> str:
        """Return why training ended, as shown by `report`."""
        if not self.ran_out(patience):
            return "finished"
        waited = f"no better validation score for {counted(self.waited, 'epoch')}"
        return f"finished by --patience {patience}: {waited}"

    def best_line(self, metric: str, nothing: str, epoch: int) -> str:
        """Return a line on the best score; without one, `nothing` and the files after `epoch`."""
        if self.best is None:
            return f"{nothing}: there is no best.h5; last.h5 is the checkpoint of epoch {epoch}"
        text = f"best {metric} {shown(metric, self.best)} at epoch {self.best_epoch}"
        test = self.test_at_best
        return text if test is None else f"{text}, test at that epoch {shown(metric, test)}"

    def stored(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["larger"]  # given by the task
        return values

    @staticmethod
    def of(values: dict[str, Any], epoch: int, path: Path, *, larger: bool = True) -> Progress:
        """Return the progress in a checkpoint after `epoch`.

        Values that older checkpoints lack are counted from the best epoch.

        Raises:
            InputError: a value is missing or impossible.
        """
        best, test = (_score(values, name, path) for name in ("best", "test_at_best"))
        best_epoch = _epoch(values, "best_epoch", epoch, path)
        if (best is None) != (best_epoch == 0):
            raise InputError("its progress has a best epoch without a score", file=path)
        waited = 0 if best is None else epoch - best_epoch
        older = {"waited": waited, "evaluated": epoch} | values
        return Progress(
            best,
            best_epoch,
            test,
            _epoch(older, "waited", epoch, path),
            _epoch(older, "evaluated", epoch, path),
            larger,
        )


def _score(values: dict[str, Any], name: str, path: Path) -> float | None:
    value = values.get(name, "")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise InputError(f"its progress must hold a score as {name}", file=path, value=value)
    return None if math.isnan(value) else float(value)


def _epoch(values: dict[str, Any], name: str, most: int, path: Path) -> int:
    value = values.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise InputError(f"its progress must hold 0 .. {most} as {name}", file=path, value=value)
    return value
