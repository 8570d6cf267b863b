"""Model and optimizer to arrays of a checkpoint, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hpcgnn.errors import InputError
from hpcgnn.train.checkpoint import Checkpoint


def is_sharded(parameter: Tensor) -> bool:
    """Whether each rank owns its own rows of this parameter (learned node embeddings)."""
    return bool(getattr(parameter, "sharded", False))


def capture(
    model: torch.nn.Module, optimizer: Optimizer, node_ids: Tensor
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Replicated arrays of model and optimizer and this rank's sharded arrays, all copied."""
    arrays, sharded = {}, {}
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if name in parameters and is_sharded(parameters[name]):
            sharded[f"model.{name}"] = _array(value)
        else:
            arrays[f"model/{name}"] = _array(value)
    names = {id(parameter): name for name, parameter in parameters.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            if is_sharded(parameter) and tensor.dim():
                sharded[f"optimizer.{names[id(parameter)]}.{key}"] = _array(tensor)
            else:
                arrays[f"optimizer/{names[id(parameter)]}/{key}"] = _array(tensor)
    if sharded:
        sharded["ids"] = _array(node_ids)
    return arrays, sharded


def restore_model(
    model: torch.nn.Module, checkpoint: Checkpoint, sharded: dict[str, np.ndarray], path: Path
) -> None:
    """Fill the model's parameters and buffers.

    Raises:
        InputError: a parameter is missing, unknown, or of another shape: another model.
    """
    own = model.state_dict()
    given = {
        name.removeprefix("model/"): array
        for name, array in checkpoint.arrays.items()
        if name.startswith("model/")
    }
    given |= {
        name.removeprefix("model."): array
        for name, array in sharded.items()
        if name.startswith("model.")
    }
    for name in sorted(own.keys() ^ given.keys()):
        holder = "the checkpoint" if name in given else "the model"
        raise InputError(f"is of another model: only {holder} has parameter {name}", file=path)
    for name, target in own.items():
        array = given[name].reshape(()) if target.dim() == 0 else given[name]
        if tuple(array.shape) != tuple(target.shape):
            raise InputError(
                f"is of another model: parameter {name} has shape {tuple(array.shape)}, the model "
                f"needs {tuple(target.shape)}",
                file=path,
            )
        if not np.isfinite(array).all():
            raise InputError(f"parameter {name} is not finite", file=path)
        target.copy_(torch.from_numpy(array))


def restore_optimizer(
    model: torch.nn.Module,
    optimizer: Optimizer,
    checkpoint: Checkpoint,
    sharded: dict[str, np.ndarray],
) -> None:
    """Fill the optimizer's state; what the checkpoint lacks starts anew.

    Learning rate, weight decay and the like stay as they are configured now.
    """
    for name, parameter in model.named_parameters():
        state: dict[str, Tensor] = {}
        for source, prefix in (
            (checkpoint.arrays, f"optimizer/{name}/"),
            (sharded, f"optimizer.{name}."),
        ):
            for key, array in source.items():
                if key.startswith(prefix) and "/" not in key[len(prefix) :]:
                    tensor = torch.from_numpy(array.copy())
                    scalar = key[len(prefix) :] == "step"
                    state[key[len(prefix) :]] = tensor.reshape(()) if scalar else tensor
        if state:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter) for key, value in state.items()
            }


def _array(value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy().copy()
    return array.reshape(1) if array.ndim == 0 else array
