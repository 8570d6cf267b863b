"""Checks of a checkpoint's arrays against one another, for any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.tasks.build import BuiltInTask, stored_task
from hpcgnn.tasks.links import STORED_LATER
from hpcgnn.tasks.settings import KINDS
from hpcgnn.tasks.task import OWN
from hpcgnn.train.config import Config
from hpcgnn.train.learned import OF_TASK

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of Adam, each like the parameter
_ADAM = ("adam", "adamw")


def form_of(array: np.ndarray) -> list[str | int]:
    """Return the dtype and shape, as checkpoints store them."""
    return [array.dtype.name, *array.shape]


def check_arrays(
    arrays: dict[str, np.ndarray],
    config: Config,
    task: dict[str, Any],
    forms: dict[str, Any] | None,
    path: str | Path,
) -> None:
    """Check arrays before any is used, as far as possible without knowing the model.

    Values must be finite; a built-in model has only float32; averages and moments must have a
    parameter, and its form.

    Args:
        task: `Task.stored`.
        forms: `form_of` each array when it was written; None in files of earlier releases.

    Raises:
        InputError: naming the first wrong array.
    """
    if forms is not None:
        _check_forms(arrays, forms, path)
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        check_finite(array, path, name)
        if group == "model":
            _check_type(config, task, array, rest, path)
        elif group == "average":
            _check_like(array, arrays.get(f"model/{rest}"), path, name)
        elif config.optimiser.kind in _ADAM:
            parameter, _, key = rest.rpartition("/")
            if key in _MOMENTS:
                _check_like(array, arrays.get(f"model/{parameter}"), path, name)


def built_in_task(
    task: dict[str, Any], arrays: dict[str, np.ndarray], path: str | Path
) -> BuiltInTask:
    """Return the task stored in a checkpoint, checking its decoder against the arrays.

    Raises:
        InputError: the stored task is impossible.
    """
    stored = arrays.items()
    lengths = {n for name, array in stored if name.startswith("model/") for n in array.shape}
    return stored_task(task, Path(path), lengths)


def check_stored_task(
    task: dict[str, Any], arrays: dict[str, np.ndarray], path: str | Path, *, of_program: bool
) -> None:
    """Check that a stored task of this package is possible and complete.

    Args:
        of_program: the task may be one of a Python program, of which anything may be stored.

    Raises:
        InputError: naming the task.
    """
    known = task.get("kind") in KINDS
    if of_program and (not known or task.get("decoder") == OWN):
        return
    told = built_in_task(task, arrays, path).stored()
    told = {name: told[name] for name in told if name in task or name not in STORED_LATER}
    same = all(task.get(name) == value for name, value in told.items())
    if not same or (not of_program and len(told) != len(task)):
        raise InputError("its task can't be", file=path, value=task)


def check_finite(array: np.ndarray, path: str | Path, name: str) -> None:
    """Raise InputError if a value is infinite or NaN."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("is not finite", file=path, dataset=name)


def _check_forms(arrays: dict[str, np.ndarray], forms: dict[str, Any], path: str | Path) -> None:
    for name in sorted(forms.keys() | arrays.keys()):
        found = form_of(arrays[name]) if name in arrays else "nothing"
        if name not in forms:
            raise InputError("was not written by this run", file=path, dataset=name)
        if found != forms[name]:
            raise InputError(
                "has a different type or shape than it was written with",
                file=path,
                dataset=name,
                value=found,
            )


def _check_type(
    config: Config, task: dict[str, Any], array: np.ndarray, name: str, path: str | Path
) -> None:
    of_program = config.model.own
    if name.startswith(OF_TASK):
        of_program = OWN in (task.get("kind"), task.get("decoder"))
    if not of_program and array.dtype != np.float32:
        raise InputError(
            "must be of type float32", file=path, dataset=f"model/{name}", value=array.dtype.name
        )


def _check_like(
    array: np.ndarray, parameter: np.ndarray | None, path: str | Path, name: str
) -> None:
    if parameter is None:
        raise InputError("belongs to a parameter that does not exist", file=path, dataset=name)
    if (array.dtype, array.shape) != (parameter.dtype, parameter.shape):
        shown = f"{parameter.dtype.name} {parameter.shape}"
        raise InputError(
            f"must match its parameter, {shown}",
            file=path,
            dataset=name,
            value=f"{array.dtype.name} {array.shape}",
        )
