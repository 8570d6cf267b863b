"""`--precision`: the arithmetic of dense products, activations and messages.

- fp32: float32 throughout.
- tf32: dense products of a GPU in TensorFloat-32; elsewhere as fp32.
- bf16: operands of dense products and rows in messages are rounded to bfloat16, on a GPU
  activations too; sums, parameters and the optimizer stay float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

CHOICES = ("fp32", "tf32", "bf16")


def prepare(precision: str) -> None:
    """Set torch's switch for products of float32 matrices, which holds for the whole process."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context to run a model's forward pass in; backward needs none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
