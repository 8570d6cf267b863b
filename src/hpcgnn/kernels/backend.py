"""Which module does the work: `cpu` or `cuda`, each with the same functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from hpcgnn.errors import InputError
from hpcgnn.timeline import profiled, span


def backend(device: torch.device) -> Any:
    """The module of kernels for tensors on `device`; while a profile is taken, a timed one."""
    if device.type not in ("cpu", "cuda"):
        raise InputError("kernels: tensors must be on the CPU or on a CUDA GPU", value=device)
    module = importlib.import_module(f"hpcgnn.kernels.{device.type}.backend")
    return _Timed(module) if profiled() else module


class _Timed:
    """A module whose functions leave a span each."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with span(f"kernel {name}"):
                return function(*args, **kwargs)

        return timed
