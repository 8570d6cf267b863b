"""Slots for messages, and the transport between buffers in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hpcgnn.comm.arrivals import NAP

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
        """Return the front of `near` as a `[num_rows, width]` tensor."""
        size = num_rows * width * dtype.itemsize
        return self.near[:size].view(dtype).view(num_rows, width)


class Transport(Protocol):
    """What a ring needs of a transport. No method waits: the ring asks again until it is ready.

    Attributes:
        in_flight: bytes to have in flight in each direction, if `--prefetch` messages are shorter
            than that together.
        in_one_piece: whether slots to send from are cut from one piece of memory, so that they are
            all replaced together.
        nap: seconds between two checks of what has no MPI request.
    """

    name: str
    nap: float
    in_flight: int
    in_one_piece: bool

    @property
    def reserved(self) -> int:
        """Bytes of the piece of memory that slots to send from are cut from."""

    @property
    def owes(self) -> bool:
        """Whether a sender still waits to be told that its slot was read."""

    def begin(self) -> None:
        """Begin an exchange: all messages that this rank sent before were received."""

    def reserve(self, sizes: Sequence[int]) -> None:
        """Reserve memory for slots of these sizes to send from; earlier ones become invalid."""

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        """Return a new buffer to send from or to receive into."""

    def mark(self) -> Any:
        """Return an event of all kernels queued so far."""

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        """Return a context for kernels that fill a slot to be sent, and its `before_send`.

        They depend on nothing that was queued later than the event `after`.
        """

    def before_send(self, slot: Slot, num_bytes: int, peer: int) -> None:
        """Start to copy `slot.near`, whose kernels are queued, to `slot.wire`."""

    def may_send(self, slot: Slot) -> bool:
        """Return whether `slot` may be sent now."""

    def send(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        """Start to send; return MPI's request, which ends when the slot may be filled again."""

    def may_receive(self, slot: Slot) -> bool:
        """Return whether `slot` may take a new message now."""

    def receive(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        """Start to receive; return MPI's request."""

    def arrived(self, slot: Slot, count: int) -> int:
        """Return the bytes of the message in `slot`, once per message; MPI received `count`."""

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        """Make a received message visible in `slot.near` to kernels queued from now on."""

    def release(self, slot: Slot) -> None:
        """Record that all kernels that read `slot.near` are queued."""

    def drop(self, slot: Slot) -> None:
        """Discard the message in `slot`, if one has arrived."""

    def may_acknowledge(self) -> bool:
        """Return whether a sender can be told now that its slot was read."""

    def acknowledge(self, comm: Communicator) -> None:
        """Tell a sender that its slot was read."""


class Wired:
    """Base of transports whose messages are passed to MPI as they are."""

    in_one_piece = False
    nap = NAP
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
    """The transport of messages in host memory, where MPI reads them."""

    name = "host"
    in_flight = 0

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        return Slot(buffer, buffer)

    def mark(self) -> Any:
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
