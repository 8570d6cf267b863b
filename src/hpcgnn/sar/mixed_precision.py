"""16-bit numbers where `torch.autocast` asks for them: in products, in kernels and in messages.

Sums are float32 throughout. Kernels on CPUs read float32, kernels on GPUs 16-bit rows as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.kernels.checks import SHORT, sum_type

_WORD = 16  # bytes


def product_type(device: torch.device) -> torch.dtype | None:
    """The type that autocast, where it is on, gives the operands of dense products."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def wire_type(x: Tensor) -> torch.dtype:
    """The type in which rows of `x` travel."""
    product = product_type(x.device)
    return product if product is not None and x.dtype == torch.float32 else x.dtype


def kernels_read_16_bit(device: torch.device) -> bool:
    """Whether kernels on `device` take 16-bit rows."""
    return device.type == "cuda"


def readable(x: Tensor) -> Tensor:
    """`x` as kernels take it: float32 on a CPU if it is 16-bit."""
    return x.float() if x.dtype in SHORT and not kernels_read_16_bit(x.device) else x


@dataclass(frozen=True)
class RowLayout:
    """Message rows: `width` features of a type, then a few scalars of the type of sums.

    Args:
        in_words: where the features are whole words of 16 bytes, so is the row. GPUs read these.
    """

    width: int
    num_scalars: int
    dtype: torch.dtype
    in_words: bool = False

    @property
    def columns(self) -> int:
        """W: columns of `dtype` that a row takes."""
        if not self.num_scalars:
            return self.width
        columns = self._begin + self.num_scalars * self._ratio
        word = _WORD // self.dtype.itemsize
        return -(-columns // word) * word if self.in_words and self.width % word == 0 else columns

    @property
    def _ratio(self) -> int:
        return sum_type(self.dtype).itemsize // self.dtype.itemsize

    @property
    def _begin(self) -> int:
        return -(-self.width // self._ratio) * self._ratio

    def features(self, rows_MW: Tensor) -> Tensor:
        """`[M, width]`, sharing memory."""
        return rows_MW[:, : self.width]

    def scalars(self, rows_MW: Tensor) -> Tensor:
        """`[M, num_scalars]`, sharing memory."""
        if not self.num_scalars:
            return rows_MW.new_empty(len(rows_MW), 0, dtype=sum_type(self.dtype))
        end = self._begin + self.num_scalars * self._ratio
        return rows_MW[:, self._begin : end].view(sum_type(self.dtype))
