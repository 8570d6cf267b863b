"""Model and optimizer to arrays of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hpcgnn.errors import InputError
from hpcgnn.nn.embedding import is_sharded
from hpcgnn.train.checkpoint.file import Checkpoint

# What torch keeps per parameter, after the first step.
_STATE: dict[type[Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: (),
}


def capture(
    model: torch.nn.Module, optimizer: Optimizer, node_ids: Tensor, *, replicated: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Replicated arrays of model and optimizer and this rank's sharded arrays, all copied.

    Args:
        replicated: whether this rank writes the replicated ones; none are copied where not.
    """
    arrays, sharded = {}, {}
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if name in parameters and is_sharded(parameters[name]):
            sharded[f"model.{name}"] = _array(value)
        elif replicated:
            arrays[f"model/{name}"] = _array(value)
    names = {id(parameter): name for name, parameter in parameters.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            if is_sharded(parameter) and tensor.dim():
                sharded[f"optimizer.{names[id(parameter)]}.{key}"] = _array(tensor)
            elif replicated:
                arrays[f"optimizer/{names[id(parameter)]}/{key}"] = _array(tensor)
    if sharded:
        sharded["ids"] = _array(node_ids)
    return arrays, sharded


def check_stored(model: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Refuse a checkpoint of another model; `model` may lie on the device `meta`, unallocated.

    Raises:
        InputError: as `restore_model`, sharded parameters aside.
    """
    parameters = dict(model.named_parameters())
    own = {
        name: value
        for name, value in model.state_dict().items()
        if not (name in parameters and is_sharded(parameters[name]))
    }
    given = _named(checkpoint.arrays, "model/")
    _check_names(own, given, "the model", path)
    for name, target in own.items():
        _check_fits(given[name], target, f"parameter {name}", path)


def restore_model(
    model: torch.nn.Module, checkpoint: Checkpoint, sharded: dict[str, np.ndarray], path: Path
) -> None:
    """Fill the model's parameters and buffers.

    Raises:
        InputError: a parameter is missing, unknown, not finite, or of another shape or type:
            another model.
    """
    own = model.state_dict()
    given = _named(checkpoint.arrays, "model/") | _named(sharded, "model.")
    _check_names(own.keys(), given.keys(), "the model", path)
    for name, target in own.items():
        target.copy_(_fitting(given[name], target, f"parameter {name}", path))


def restore_optimizer(
    model: torch.nn.Module,
    optimizer: Optimizer,
    checkpoint: Checkpoint,
    sharded: dict[str, np.ndarray],
    path: Path,
) -> None:
    """Fill the optimizer's state: nothing before the first epoch, all of it afterwards.

    Learning rate, weight decay and the like stay as they are configured now.

    Raises:
        InputError: something is missing, unknown, not finite, below 0 where nothing can be, or of
            another shape or type.
    """
    keys = _STATE[type(optimizer)] if checkpoint.epoch else ()
    parameters = dict(model.named_parameters())
    given = _named(checkpoint.arrays, "optimizer/")
    for name, rows in _named(sharded, "optimizer.").items():
        of, _, key = name.rpartition(".")
        given[f"{of}/{key}"] = rows
    _check_names({f"{name}/{k}" for name in parameters for k in keys}, given, "the optimizer", path)
    for name, parameter in parameters.items():
        state: dict[str, Tensor] = {}
        for key in keys:
            target = torch.zeros(()) if key == "step" else parameter
            value = _fitting(given[f"{name}/{key}"], target, f"optimizer's {name}/{key}", path)
            if key == "step" and not (value >= 1 and value == value.round()):
                steps = float(value)
                raise InputError("is no number of steps", file=path, dataset=name, value=steps)
            if key == "exp_avg_sq" and bool((value < 0).any()):
                raise InputError("has squares below 0", file=path, dataset=f"{name}/{key}")
            state[key] = value if key == "step" else value.to(parameter)
        if state:
            optimizer.state[parameter] = state


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _check_names(own: Collection[str], given: Collection[str], whose: str, path: Path) -> None:
    for name in sorted(set(own) ^ set(given)):
        holder = "the checkpoint" if name in given else whose
        raise InputError(f"is of another model: only {holder} has parameter {name}", file=path)


def _fitting(array: np.ndarray, target: Tensor, what: str, path: Path) -> Tensor:
    """A copy of `array`, checked."""
    _check_fits(array, target, what, path)
    return torch.from_numpy(array.copy()).reshape(target.shape)


def _check_fits(array: np.ndarray, target: Tensor, what: str, path: Path) -> None:
    """`array` must be finite and have the type and shape of `target`."""
    shape = tuple(target.shape) or (1,)  # single numbers are stored as arrays
    if tuple(array.shape) != shape:
        raise InputError(
            f"is of another model: {what} has shape {tuple(array.shape)}, the model needs {shape}",
            file=path,
        )
    kind = str(target.dtype).removeprefix("torch.")
    if array.dtype.name != kind:
        raise InputError(f"{what} must be of type {kind}", file=path, value=array.dtype.name)
    if not np.isfinite(array).all():
        raise InputError(f"{what} is not finite", file=path)


def _array(value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy()
    if value.device.type == "cpu":
        array = array.copy()
    return array.reshape(1) if array.ndim == 0 else array
