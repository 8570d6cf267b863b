"""Messages of an exchange: whom a rank exchanges them with, and the slots they travel in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpcgnn.comm.transport.host import Slot


def ring_order(rank: int, size: int, direction: int) -> list[int]:
    """Peers of `rank` in ring order: whom it sends to (+1) or receives from (-1)."""
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
    """A posted message; `num_bytes` is what has come, -1 before."""

    request: Any
    slot: Slot
    index: int
    num_bytes: int = -1


class Channel:
    """A fixed number of slots and the messages in flight on them, oldest first.

    `packed` are slots that were filled but that MPI may not read yet; `next` is the index of the
    first message that was neither packed nor posted.
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
        """Free every slot that is not in flight, whoever took it and lost it to an error."""
        taken = {id(message.slot) for message in self.flight}
        self.free = deque(slot for slot in self.slots if id(slot) not in taken)

    def drop_packed(self) -> int:
        """Forget messages that were packed and not sent; their number."""
        dropped = len(self.packed)
        self.packed.clear()
        return dropped
