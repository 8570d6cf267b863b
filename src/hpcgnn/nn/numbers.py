"""Numbers that tell the random streams of a model's layers apart."""

from __future__ import annotations

import torch

FIRST = 1 << 21  # above the numbers that models of this package give


def layer_number(layer: int | None) -> int:
    """`layer`, or a number drawn from torch's generator, as weights are.

    So it is the same on all ranks, and in every run, where the model's first weights are.
    """
    if layer is not None:
        return layer
    return int(torch.randint(FIRST, 2**31, (), device="cpu"))
