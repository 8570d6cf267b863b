"""Conversion of model and optimizer state to arrays of a checkpoint, and back."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.linear import is_sharded
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.rows import check_rows, read_sharded
from hpcgnn.train.learned import OF_TASK, Learned
from hpcgnn.train.optimizers import PlainAdam, PlainAdamW, PlainSGD
from hpcgnn.train.plain import decode, encode

# State that torch keeps per parameter after the first step; that of other optimizers is unknown.
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_STATE: dict[type[Optimizer], tuple[str, ...]] = {
    **dict.fromkeys((torch.optim.Adam, PlainAdam, torch.optim.AdamW, PlainAdamW), _ADAM),
    **dict.fromkeys((torch.optim.SGD, PlainSGD), ()),
}


def capture(
    learned: Learned,
    optimizer: Optimizer,
    node_ids: Tensor,
    average: dict[str, Tensor] | None = None,
    *,
    replicated: bool = True,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Return replicated arrays, this rank's sharded arrays, and the optimizer's plain values.

    All are copies.

    Args:
        average: the moving average of the parameters by name, if there is one.
        replicated: whether this rank writes the replicated arrays; else none are copied.
    """
    arrays: dict[str, np.ndarray] = {}
    sharded: dict[str, np.ndarray] = {}
    plain: dict[str, Any] = {}
    own_rows = learned.sharded_names()
    averages = dict(average or {})
    if averages:  # under all names, like the model's own values
        averages |= {second: averages[name] for second, name in learned.second_names().items()}
    for group, values in (("model", learned.state_dict()), ("average", averages)):
        for name, value in values.items():
            if name in own_rows:
                sharded[f"{group}.{name}"] = _array(value)
            elif replicated:
                arrays[f"{group}/{name}"] = _array(value)
    names = {id(parameter): name for name, parameter in learned.named_parameters()}
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in state.items():
            number = isinstance(value, Tensor) and value.dim() == 0 and key != "step"
            if number or not isinstance(value, Tensor):
                plain.setdefault(name, {})[key] = encode(value, f"the optimizer's {name}/{key}")
            elif is_sharded(parameter) and value.dim():
                sharded[f"optimizer.{name}.{key}"] = _array(value)
            elif replicated:
                arrays[f"optimizer/{name}/{key}"] = _array(value)
    if sharded:
        sharded["ids"] = _array(node_ids)
    return arrays, sharded, plain


def check_stored(model: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Check that a checkpoint is of this model, which may be on the device `meta`, unallocated.

    Raises:
        InputError: as `restore_model`, except for sharded parameters and those of the task.
    """
    learned = Learned(model)
    own_rows = learned.sharded_names()
    own = {name: value for name, value in learned.state_dict().items() if name not in own_rows}
    given = {
        name: array
        for name, array in _named(checkpoint.arrays, "model/").items()
        if not name.startswith(OF_TASK)
    }
    _check_names(own, given, "the model", path)
    for name, target in own.items():
        _check_fits(given[name], target, f"parameter {name}", path)


def restored_rows(
    learned: Learned,
    checkpoint: Checkpoint,
    graph: PartitionedGraph,
    path: Path,
    matched: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return this rank's rows of sharded parameters; empty without such parameters.

    Args:
        matched: the rows, if the graph is a later one, whose nodes were found by their ids.

    Raises:
        InputError: the checkpoint has rows that the model lacks, or of another dtype or width; a
            node has no row or two; or a row is of a node that isn't in the graph.
    """
    names, values = learned.sharded_names(), learned.state_dict()
    forms = {name: (_kind(values[name]), tuple(values[name].shape[1:])) for name in names}
    check_rows(checkpoint.rows, forms, path)
    if not names:
        return {}
    if matched is not None:
        return matched
    same = checkpoint.graph_fingerprint == graph.graph_fingerprint
    node_ids = graph.node_ids.cpu().numpy()
    return read_sharded(path, node_ids, graph.num_nodes if same else None)


def restore_model(
    learned: Learned, checkpoint: Checkpoint, sharded: dict[str, np.ndarray], path: Path
) -> None:
    """Fill parameters and buffers.

    Raises:
        InputError: a parameter is missing, unknown, not finite, or of another shape or dtype: it is
            another model.
    """
    own = learned.state_dict()
    given = _named(checkpoint.arrays, "model/") | _named(sharded, "model.")
    _check_names(own.keys(), given.keys(), "the model", path)
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(_fitting(given[name], target, f"parameter {name}", path))


def restored_average(
    learned: Learned, checkpoint: Checkpoint, sharded: dict[str, np.ndarray], path: Path
) -> dict[str, Tensor]:
    """Return the moving average of the parameters; empty if the checkpoint has none.

    Raises:
        InputError: as `restore_model`.
    """
    given = _named(checkpoint.arrays, "average/") | _named(sharded, "average.")
    own = dict(learned.named_parameters())
    if given:
        # Older files have tied parameters under their first names only.
        given = {name: given[name] for name in given.keys() - learned.second_names().keys()}
        _check_names(own.keys(), given.keys(), "the model", path)
    return {
        name: _fitting(array, own[name], f"average {name}", path).to(own[name].device)
        for name, array in given.items()
    }


def restore_optimizer(
    learned: Learned,
    optimizer: Optimizer,
    checkpoint: Checkpoint,
    sharded: dict[str, np.ndarray],
    path: Path,
) -> None:
    """Fill the optimizer's state, which is empty before the first epoch and complete after it.

    Learning rate, weight decay and other settings are not part of it.

    Raises:
        InputError: a value is missing, unknown, not finite, negative where it can't be, or of
            another shape or dtype.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in learned.named_parameters() if id(p) in held}
    given = _named(checkpoint.arrays, "optimizer/")
    for name, rows in _named(sharded, "optimizer.").items():
        of, _, key = name.rpartition(".")
        given[f"{of}/{key}"] = rows
    known = type(optimizer) in _STATE
    plain = checkpoint.state.get("optimizer", {})
    if known:
        plain = _take_moments(plain, given)
    names = _expected(optimizer, parameters) if checkpoint.epoch else []
    if names is None:
        names = [name for name in given if name.rpartition("/")[0] in parameters]
    _check_names(names, given, "the optimizer", path)
    states: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    for entry in names:
        name, _, key = entry.rpartition("/")
        what = f"optimizer's {entry}"
        if known and key not in ("step", "max_exp_avg_sq"):
            states[name][key] = _moment(given[entry], parameters[name], what, path)
        elif key == "step" and (known or given[entry].size == 1):
            most = checkpoint.epoch if known else math.inf  # the trainer steps once per epoch
            steps = _steps(given[entry], most, what, path)
            states[name][key] = steps.to(_place_of_steps(optimizer, parameters[name]))
        elif given[entry].size > max(parameters[name].numel(), 1):
            raise InputError(f"{what} has more numbers than the parameter", file=path)
        else:
            value = torch.from_numpy(given[entry].copy())
            states[name][key] = value.to(parameters[name].device)
    for name, values in plain.items():
        if name not in states or not isinstance(values, dict):
            raise InputError("belongs to another model: its optimizer has parameter", value=name)
        device = parameters[name].device
        for key, value in values.items():
            found = decode(value)
            states[name][key] = found.to(device) if isinstance(found, Tensor) else found
    for name, state in states.items():
        if state:
            optimizer.state[parameters[name]] = state


def _take_moments(plain: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, Any]:
    """Move moments of 0-dimensional parameters from plain values to `given`; return the others."""
    others: dict[str, Any] = {}
    for name, values in plain.items():
        for key, value in values.items():
            found = decode(value)
            if key in _ADAM and isinstance(found, Tensor) and not found.dim():
                given[f"{name}/{key}"] = found.numpy().reshape(1)
            else:
                others.setdefault(name, {})[key] = value
    return others


def _expected(optimizer: Optimizer, parameters: dict[str, torch.nn.Parameter]) -> list[str] | None:
    """Return the names of an optimizer's state after its first step; None if not known."""
    keys = _STATE.get(type(optimizer))
    groups = optimizer.param_groups
    if keys is None or any(group.get("amsgrad") or group.get("momentum") for group in groups):
        return None
    return [f"{name}/{key}" for name, p in parameters.items() if p.requires_grad for key in keys]


def _place_of_steps(optimizer: Optimizer, parameter: torch.nn.Parameter) -> torch.device:
    """Return where the optimizer counts steps: by the parameter if its kernel reads the count."""
    for group in optimizer.param_groups:
        if any(held is parameter for held in group["params"]):
            beside = group.get("fused") or group.get("capturable")
            return parameter.device if beside else torch.device("cpu")
    return torch.device("cpu")


def _steps(array: np.ndarray, most: float, what: str, path: Path) -> Tensor:
    value = _fitting(array, torch.zeros(()), what, path)
    if not (1 <= value <= most and value == value.round()):
        raise InputError(f"{what} is not a number of steps", file=path, value=float(value))
    return value


def _moment(array: np.ndarray, parameter: torch.nn.Parameter, what: str, path: Path) -> Tensor:
    """Return a moment of Adam or SGD, in the form of its parameter."""
    value = _fitting(array, parameter, what, path)
    if what.endswith("_sq") and bool((value < 0).any()):
        raise InputError(f"{what} has negative squares", file=path)
    return value.to(parameter)


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _check_names(own: Collection[str], given: Collection[str], whose: str, path: Path) -> None:
    for name in sorted(set(own) ^ set(given)):
        holder = "the checkpoint" if name in given else whose
        raise InputError(f"belongs to another model: only {holder} has parameter {name}", file=path)


def _fitting(array: np.ndarray, target: Tensor, what: str, path: Path) -> Tensor:
    """Return a checked copy of `array`."""
    _check_fits(array, target, what, path)
    return torch.from_numpy(array.copy()).reshape(target.shape)


def _check_fits(array: np.ndarray, target: Tensor, what: str, path: Path) -> None:
    """Check that `array` is finite and has the dtype and shape of `target`."""
    shape = tuple(target.shape) or (1,)  # single numbers are stored as arrays
    if tuple(array.shape) != shape:
        raise InputError(
            f"belongs to another model: {what} has shape {tuple(array.shape)}, the model needs "
            f"{shape}",
            file=path,
        )
    kind = _kind(target)
    if array.dtype.name != kind:
        raise InputError(f"{what} must be of type {kind}", file=path, value=array.dtype.name)
    if not np.isfinite(array).all():
        raise InputError(f"{what} is not finite", file=path)


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _array(value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy()
    if value.device.type == "cpu":
        array = array.copy()
    return array.reshape(1) if array.ndim == 0 else array
