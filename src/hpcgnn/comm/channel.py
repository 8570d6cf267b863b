"""Messages of an exchange: the peers in ring order, and the slots that messages occupy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpcgnn.comm.transport.host import Slot


def ring_order(rank: int, size: int, direction: int) -> list[int]:
    """Return the peers of `rank` in ring order: those it sends to (+1) or receives from (-1)."""
    return [(rank + direction * k) % size for k in range(1, size)]


@dataclass(frozen=True)
class Outgoing:
    """A message to `peer`; `pack` fills the `[num_rows, width]` buffer when a slot is free."""

    peer: int
    num_rows: int
    pack: Callable[[Tensor], None]


@dataclass(frozen=True)
class Incoming:
    """A message from `peer` of `num_rows` rows."""

    peer: int
    num_rows: int


@dataclass
class InFlight:
    """A posted message; `num_bytes` is the number of bytes received, -1 until it is known."""

    request: Any
    slot: Slot
    index: int
    num_bytes: int = -1


class Channel:
    """A fixed number of slots and the messages in flight on them, oldest first.

    `packed` holds the slots that were filled but that MPI may not read yet; `next` is the index of
    the first message that was neither packed nor posted.
    """

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.free = deque(slots)
        self.packed: deque[tuple[Slot, int]] = deque()
        self.flight: deque[InFlight] = deque()
        self.next = 0

    def take(self) -> Slot:
        return self.free.popleft()

    def post(self, request: Any, slot: Slot, index: int) -> None:
        self.flight.append(InFlight(request, slot, index))

    def retire_sent(self) -> None:
        waiting: deque[InFlight] = deque()
        for message in self.flight:
            if message.request.Test():
                self.free.append(message.slot)
            else:
                waiting.append(message)
        self.flight = waiting

    def reclaim(self) -> None:
        """Free every slot that is not in flight, including those lost to an error after `take`."""
        taken = {id(message.slot) for message in self.flight}
        self.free = deque(slot for slot in self.slots if id(slot) not in taken)

    def drop_packed(self) -> int:
        """Drop the messages that were packed and not sent; return how many these were."""
        dropped = len(self.packed)
        self.packed.clear()
        return dropped
