"""How far validation has come: the best score, and how long ago it was."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError
from hpcgnn.tasks.metric_names import shown


@dataclass
class Progress:
    """The best validation so far; stored in every checkpoint.

    Attributes:
        best: its score, None before the first.
        best_epoch: its epoch, 0 before the first.
        test_at_best: the test score of that epoch, None where it is undefined.
        waited: epochs up to evaluations that gave a score, but no better one, since the best.
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
        """Take an evaluation in; whether it is the best. Without a score it counts for nothing."""
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
        """Whether better validation was awaited for `patience` epochs; 0 waits for ever."""
        return 0 < patience <= self.waited

    def reason(self, patience: int) -> str:
        """Why training ended, as `report` shows it."""
        if not self.ran_out(patience):
            return "finished"
        waited = f"no better validation for {self.waited} epochs"
        return f"finished by --patience {patience}: {waited}"

    def best_line(self, metric: str, nothing: str, epoch: int) -> str:
        """The best score in words; without one `nothing`, and what there is after `epoch`."""
        if self.best is None:
            return f"{nothing}: there is no best.h5; last.h5 is the checkpoint of epoch {epoch}"
        text = f"best {metric} {shown(metric, self.best)} at epoch {self.best_epoch}"
        test = self.test_at_best
        return text if test is None else f"{text}, test there {shown(metric, test)}"

    def stored(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["larger"]  # which the task says
        return values

    @staticmethod
    def of(values: dict[str, Any], epoch: int, path: Path, *, larger: bool = True) -> Progress:
        """What a checkpoint after `epoch` stores; what older ones lack is counted from the best.

        Raises:
            InputError: a value is missing or can't be.
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
