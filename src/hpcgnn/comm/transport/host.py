"""Slots for messages, and the transport between buffers in host memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class Slot:
    """One reusable message buffer: kernels work in `near`, MPI reads or writes `wire`.

    Both are uint8 and equally long; on host transports they are the same tensor.
    """

    near: Tensor
    wire: Tensor

    def view(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """The front of `near` as a `[num_rows, width]` tensor."""
        size = num_rows * width * dtype.itemsize
        return self.near[:size].view(dtype).view(num_rows, width)


class Transport(Protocol):
    """What a ring asks for. None of it waits: what is not ready is asked for again.

    Attributes:
        in_flight: bytes to be under way in a direction, where messages are so short that
            `--prefetch` of them are less.
    """

    name: str
    in_flight: int

    def slot(self, num_bytes: int) -> Slot:
        """A new buffer."""

    def mark(self) -> Any:
        """What stands for all kernels asked for so far."""

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        """Around kernels that fill a slot to be sent, and its `before_send`.

        They need nothing that was asked for later than `after`, a `mark`.
        """

    def before_send(self, slot: Slot, num_bytes: int) -> None:
        """Kernels that fill `slot.near` are queued: begin to make `slot.wire` hold the same."""

    def may_send(self, slot: Slot) -> bool:
        """Whether MPI may read `slot.wire` now."""

    def may_receive(self, slot: Slot) -> bool:
        """Whether MPI may write to `slot.wire` now."""

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        """MPI has filled `slot.wire`: kernels queued from now on find the same in `slot.near`."""

    def release(self, slot: Slot) -> None:
        """All kernels that read `slot.near` are queued."""


class HostTransport:
    """Messages lie in host memory, and MPI reads them there."""

    name = "host"
    in_flight = 0

    def slot(self, num_bytes: int) -> Slot:
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        return Slot(buffer, buffer)

    def mark(self) -> None:
        return None

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def before_send(self, slot: Slot, num_bytes: int) -> None:
        pass

    def may_send(self, slot: Slot) -> bool:
        return True

    def may_receive(self, slot: Slot) -> bool:
        return True

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        pass

    def release(self, slot: Slot) -> None:
        pass
