"""Sums that several threads add to in any order of rows."""

from __future__ import annotations

import torch
from torch import Tensor


class ThreadSums:
    """A sum for each thread, so that the result doesn't depend on who comes first.

    `parts` is handed to as many calls as add to the same sum, and `add_up` puts the result into it:
    the cost of threads x rows x columns comes once, not with every call.

    Args:
        total: float64 `[rows, columns]`, added to.
    """

    def __init__(self, total: Tensor) -> None:
        self._total = total
        count = torch.get_num_threads() if total.device.type == "cpu" else 1
        self.parts = total[None] if count == 1 else total.new_zeros(count, *total.shape)

    def add_up(self) -> None:
        if len(self.parts) > 1:
            for part in self.parts[1:]:
                self.parts[0] += part
            self._total += self.parts[0]
