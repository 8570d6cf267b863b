"""Slots for messages, and the transport between buffers in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator


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
        in_one_piece: slots to send from are cut from one piece of memory, all anew where one is.
    """

    name: str
    in_flight: int
    in_one_piece: bool

    @property
    def reserved(self) -> int:
        """Bytes of that piece."""

    @property
    def owes(self) -> bool:
        """Whether a sender waits to be told that its slot was read."""

    def begin(self) -> None:
        """An exchange begins: all that this rank has sent was received."""

    def reserve(self, sizes: Sequence[int]) -> None:
        """Slots of these sizes will be asked for to send from; the earlier ones are void."""

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        """A new buffer, to send from or to receive in."""

    def mark(self) -> Any:
        """What stands for all kernels asked for so far."""

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        """Around kernels that fill a slot to be sent, and its `before_send`.

        They need nothing that was asked for later than `after`, a `mark`.
        """

    def before_send(self, slot: Slot, num_bytes: int, peer: int) -> None:
        """Kernels that fill `slot.near` are queued: begin to make `slot.wire` hold the same."""

    def may_send(self, slot: Slot) -> bool:
        """Whether `slot` may be sent now."""

    def send(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        """Start to send; MPI's request, which ends when the slot may be filled again."""

    def may_receive(self, slot: Slot) -> bool:
        """Whether `slot` may take a new message now."""

    def receive(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        """Start to receive; MPI's request."""

    def arrived(self, slot: Slot, count: int) -> int:
        """Bytes of the message in `slot`, of which MPI has received `count`; once a message."""

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        """A message has arrived: kernels queued from now on find it in `slot.near`."""

    def release(self, slot: Slot) -> None:
        """All kernels that read `slot.near` are queued."""

    def drop(self, slot: Slot) -> None:
        """Nobody wants what has arrived in `slot`, if anything has."""

    def may_acknowledge(self) -> bool:
        """Whether a sender can be told now."""

    def acknowledge(self, comm: Communicator) -> None:
        """Tell it."""


class Wired:
    """What transports have in common whose messages are given to MPI as they are."""

    in_one_piece = False
    reserved = 0
    owes = False

    def begin(self) -> None:
        pass

    def reserve(self, sizes: Sequence[int]) -> None:
        pass

    def send(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        return comm.issend(slot.wire[:num_bytes], peer, tag)

    def receive(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        return comm.irecv(slot.wire[:num_bytes], peer, tag)

    def arrived(self, slot: Slot, count: int) -> int:
        return count

    def drop(self, slot: Slot) -> None:
        pass

    def may_acknowledge(self) -> bool:
        return False

    def acknowledge(self, comm: Communicator) -> None:
        pass


class HostTransport(Wired):
    """Messages lie in host memory, and MPI reads them there."""

    name = "host"
    in_flight = 0

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        return Slot(buffer, buffer)

    def mark(self) -> None:
        return None

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def before_send(self, slot: Slot, num_bytes: int, peer: int) -> None:
        pass

    def may_send(self, slot: Slot) -> bool:
        return True

    def may_receive(self, slot: Slot) -> bool:
        return True

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        pass

    def release(self, slot: Slot) -> None:
        pass
