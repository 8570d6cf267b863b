"""Callbacks: a user's functions and objects that the training loop calls on all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hpcgnn.errors import InputError
from hpcgnn.train.plain import decode, encode

_METHODS = ("on_start", "on_epoch", "on_end")


class Callbacks:
    """A run's callbacks: functions `f(trainer, record)`, or objects with some of these methods:

    on_start(trainer)           before the first epoch of this job
    on_epoch(trainer, record)   after an epoch; numbers added to `record` go to metrics.jsonl
    on_end(trainer)             after the last epoch, or an early stop
    state_dict(), load_state_dict(state)    plain values kept in checkpoints

    All are called on every rank, so that they can use collectives; `trainer.request_stop(reason)`
    ends the run after the epoch.

    Raises:
        InputError: a callback is neither.
    """

    def __init__(self, given: Sequence[Any]) -> None:
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise InputError("callbacks must be a list", value=type(given).__name__)
        self.given = list(given)
        for callback in self.given:
            if not callable(callback) and not any(hasattr(callback, name) for name in _METHODS):
                raise InputError(
                    "a callback must be a function of (trainer, record) or have a method "
                    + ", ".join(_METHODS),
                    value=type(callback).__name__,
                )

    def start(self, trainer: Any) -> None:
        self._call("on_start", trainer)

    def epoch(self, trainer: Any, record: dict[str, Any]) -> None:
        known = set(record)
        for callback in self.given:
            if hasattr(callback, "on_epoch"):
                callback.on_epoch(trainer, record)
            elif not any(hasattr(callback, name) for name in _METHODS):
                callback(trainer, record)
        for name in set(record) - known:
            record[name] = _number(name, record[name])

    def end(self, trainer: Any) -> None:
        self._call("on_end", trainer)

    def stored(self) -> dict[str, Any]:
        return {
            name: encode(callback.state_dict(), f"the callback {name}")
            for name, callback in self._named().items()
            if hasattr(callback, "state_dict")
        }

    def restore(self, stored: dict[str, Any]) -> None:
        for name, callback in self._named().items():
            if name in stored and hasattr(callback, "load_state_dict"):
                callback.load_state_dict(decode(stored[name]))

    def _named(self) -> dict[str, Any]:
        return {f"{type(one).__name__} {number}": one for number, one in enumerate(self.given, 1)}

    def _call(self, method: str, trainer: Any) -> None:
        for callback in self.given:
            if hasattr(callback, method):
                getattr(callback, method)(trainer)


def _number(name: str, value: Any) -> float | int | str | bool | None:
    """Return a value for metrics.jsonl: null for numbers that are not finite."""
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"a callback added {name} to the record, which is not a number",
            value=type(value).__name__,
        ) from None
    return number if math.isfinite(number) else None
