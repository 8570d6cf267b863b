"""A moving average of the weights, with which scores are better than with the newest ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hpcgnn.train.learned import Learned


class Average:
    """`average <- decay * average + (1 - decay) * weight` after each epoch; of parameters alone.

    Attributes:
        values: by name of the parameter; empty before the first epoch.
    """

    def __init__(self, learned: Learned, decay: float) -> None:
        self.learned, self.decay = learned, decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self.learned.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter.detach(), 1 - self.decay)
            else:
                self.values[name] = parameter.detach().clone()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters have their average for the block, and then their own values again."""
        if not self.values:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.learned.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)
