"""Learning rates, set by the settings without state or by a torch scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hpcgnn.errors import InputError
from hpcgnn.train.config import Config
from hpcgnn.train.optimisation import schedule_factor
from hpcgnn.train.plain import decode, encode

Scheduler = LRScheduler | ReduceLROnPlateau


class Rate(Protocol):
    """Sets the learning rates of an optimizer's groups."""

    def begin(self, epoch: int) -> None:
        """Set the rates before the step of an epoch, from 1."""

    def end(self, score: float | None) -> None:
        """Update after an epoch, given the monitored score if it was evaluated."""

    def stored(self) -> dict[str, Any]:
        """Return the state for checkpoints, as plain values."""

    def restore(self, stored: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; empty if the run stored none."""


class ScheduledRate:
    """Rates by the `schedule` setting: a function of the epoch, so that a resumed run agrees."""

    def __init__(self, optimizer: Optimizer, config: Config) -> None:
        self.optimizer, self.config = optimizer, config
        self.base = [float(group["lr"]) for group in optimizer.param_groups]

    def begin(self, epoch: int) -> None:
        factor = schedule_factor(self.config, epoch)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor

    def end(self, score: float | None) -> None:
        pass

    def stored(self) -> dict[str, Any]:
        return {}

    def restore(self, stored: dict[str, Any]) -> None:
        pass


class SchedulerRate:
    """Rates by a scheduler that steps once per epoch, or constant without; their state is stored.

    Raises:
        InputError: the scheduler belongs to another optimizer, or its state can't be stored.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Scheduler | None) -> None:
        if scheduler is not None and getattr(scheduler, "optimizer", None) is not optimizer:
            raise InputError("the scheduler belongs to another optimizer than the one given")
        self.optimizer, self.scheduler = optimizer, scheduler
        self.stored()

    def begin(self, epoch: int) -> None:
        pass

    def end(self, score: float | None) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if score is not None:
                self.scheduler.step(score)
        elif self.scheduler is not None:
            self.scheduler.step()

    def stored(self) -> dict[str, Any]:
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        state = {} if self.scheduler is None else self.scheduler.state_dict()
        return {
            "groups": encode(groups, "the optimizer"),
            "scheduler": encode(state, f"the scheduler {type(self.scheduler).__name__}"),
        }

    def restore(self, stored: dict[str, Any]) -> None:
        if not stored and self.scheduler is None:
            return
        groups, state = decode(stored["groups"]), decode(stored["scheduler"])
        own = self.optimizer.param_groups
        if len(groups) != len(own) or any(not isinstance(group, dict) for group in groups):
            raise ValueError(f"it has {len(groups)} parameter groups, not {len(own)}")
        for group, given in zip(own, groups, strict=True):
            if set(given) != set(group) - {"params"}:
                raise ValueError("its optimizer has other settings: it is of another kind")
            group.update(given)
        if self.scheduler is not None:
            # Functions are not stored; the scheduler keeps its present ones.
            self.scheduler.load_state_dict(self.scheduler.state_dict() | state)


class WarmUp:
    """Lower rates in the first epochs: epoch / (epochs + 1) times those of the schedule."""

    def __init__(self, optimizer: Optimizer, epochs: int) -> None:
        self.optimizer, self.epochs = optimizer, epochs

    def step(self, epoch: int) -> None:
        """Run the optimizer's step of an epoch."""
        groups = self.optimizer.param_groups
        if epoch > self.epochs:
            self.optimizer.step()
            return
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * (epoch / (self.epochs + 1))
        self.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def made_rate(
    optimizer: Optimizer,
    scheduler: Scheduler | Callable[[Optimizer], Scheduler] | None,
    config: Config,
    *,
    by_settings: bool,
) -> Rate:
    """Return the rates of the given scheduler, one made from the optimizer, or the settings.

    Args:
        by_settings: whether the optimizer is that of the settings.

    Raises:
        InputError: the scheduler is not one of torch's.
    """
    if by_settings and scheduler is None:
        return ScheduledRate(optimizer, config)
    if scheduler is not None and not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
        if callable(scheduler):
            scheduler = scheduler(optimizer)
        if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
            raise InputError(
                "scheduler must be one of torch.optim.lr_scheduler, or a function that makes one "
                "from the optimizer",
                value=type(scheduler).__name__,
            )
    return SchedulerRate(optimizer, scheduler)
