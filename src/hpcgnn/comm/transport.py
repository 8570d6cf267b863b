"""How a message leaves and reaches a rank: the memory MPI sees, and the memory kernels see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Slot:
    """One reusable message buffer: `near` is where kernels work, `wire` is what MPI reads or writes.

    Both are uint8 and equally long; on host transports they are the same tensor.
    """

    near: Tensor
    wire: Tensor

    def view(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """The front of `near` as a `[num_rows, width]` tensor."""
        size = num_rows * width * dtype.itemsize
        return self.near[:size].view(dtype).view(num_rows, width)


class HostTransport:
    """Messages lie in host memory, and MPI reads them there."""

    name = "host"

    def slot(self, num_bytes: int) -> Slot:
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        return Slot(buffer, buffer)

    def before_send(self, slot: Slot, num_bytes: int) -> None:
        """Make the first bytes of `slot.wire` hold what `slot.near` holds."""

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        """Make the first bytes of `slot.near` hold what `slot.wire` holds."""
