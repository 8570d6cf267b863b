"""Which module does the work: `cpu` or `cuda`, each with the same functions."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from hpcgnn.errors import InputError


def backend(device: torch.device) -> ModuleType:
    """The module of kernels for tensors on `device`."""
    if device.type not in ("cpu", "cuda"):
        raise InputError("kernels: tensors must be on the CPU or on a CUDA GPU", value=device)
    return importlib.import_module(f"hpcgnn.kernels.{device.type}")
