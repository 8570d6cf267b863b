"""Point-to-point exchange in ring order, with bounded buffers that are allocated once.

At step k rank r sends to (r + k) mod P and receives from (r - k) mod P. Every message waits for a
free slot, so that memory for remote rows never exceeds `halo_buffer`, whatever P. Because all ranks
order their messages by (step, piece), the earliest unfinished message can always proceed: no
deadlock. Replies travel the same way back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcgnn.comm.transport import HostTransport, Slot, Transport
from hpcgnn.errors import InputError
from hpcgnn.timeline import span

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

LARGEST_MESSAGE = 1 << 30  # bytes; MPI counts are C ints
_DATA_TAG, _REPLY_TAG = 11, 12
_NOTHING = (torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8))
_NAP = 2e-5  # seconds between two looks at copies that no request stands for


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


class Arrival:
    """A received message; `rows_HF` is valid until the next one is asked for."""

    def __init__(self, exchange: Exchange, index: int, rows_HF: Tensor) -> None:
        self.index = index
        self.rows_HF = rows_HF
        self._exchange = exchange

    def reply(self, rows_HF: Tensor) -> None:
        """Send one row per received row back to the sender."""
        self._exchange.reply(self.index, rows_HF)


class _Channel:
    """A fixed number of slots and the requests in flight on them, oldest first.

    `packed` are slots that were filled but that MPI may not read yet.
    """

    def __init__(self, slots: list[Slot]) -> None:
        self.free = deque(slots)
        self.packed: deque[tuple[Slot, int]] = deque()
        self.flight: deque[tuple[Any, Slot, int]] = deque()

    def take(self) -> Slot:
        return self.free.popleft()

    def post(self, request: Any, slot: Slot, index: int) -> None:
        self.flight.append((request, slot, index))

    def retire_sent(self) -> None:
        waiting: deque[tuple[Any, Slot, int]] = deque()
        for entry in self.flight:
            if entry[0].Test():
                self.free.append(entry[1])
            else:
                waiting.append(entry)
        self.flight = waiting


class Exchange:
    """One ring exchange under way. Iterate to receive; call `progress` between pieces of work."""

    def __init__(
        self,
        ring: Ring,
        outgoing: Sequence[Outgoing],
        incoming: Sequence[Incoming],
        width: int,
        dtype: torch.dtype,
        *,
        where: str = "ring",
        reply_width: int = 0,
        on_reply: Callable[[int, Tensor], None] | None = None,
        at_once: bool = False,
    ) -> None:
        ring.newest = None
        self.ring, self.where = ring, where
        self.outgoing, self.incoming = outgoing, incoming
        self.width, self.reply_width, self.dtype = width, reply_width, dtype
        self.on_reply = on_reply
        depth_in = len(incoming) if at_once else min(len(incoming), ring.prefetch)
        depth_out = len(outgoing) if at_once else min(len(outgoing), ring.prefetch)
        rows_in = max((m.num_rows for m in incoming), default=0)
        rows_out = max((m.num_rows for m in outgoing), default=0)
        size, reply_size = width * dtype.itemsize, reply_width * dtype.itemsize
        replies = ring.prefetch if reply_width else 0
        slots = ring.slots(
            {
                "receive": (depth_in, rows_in * size),
                "send": (depth_out, rows_out * size),
                "reply-send": (min(depth_in, replies), rows_in * reply_size),
                "reply-receive": (min(depth_out, replies), rows_out * reply_size),
            }
        )
        self._receives, self._sends = _Channel(slots["receive"]), _Channel(slots["send"])
        self._replies_out = _Channel(slots["reply-send"])
        self._replies_in = _Channel(slots["reply-receive"])
        self._next_receive = self._next_send = self._next_reply = 0
        self._replies_done = 0
        self.progress()

    def progress(self) -> None:
        """Post what fits into free slots and let MPI move what is in flight."""
        self._post_receives()
        self._sends.retire_sent()
        self._post_sends()
        if self.reply_width:
            self._replies_out.retire_sent()
            self._send_packed(self._replies_out, self.incoming, self.reply_width, _REPLY_TAG)
            self._post_reply_receives()
            self._accept_replies()

    def __iter__(self) -> Iterator[Arrival]:
        for index, message in enumerate(self.incoming):
            slot = self._wait_for_receive()
            num_bytes = message.num_rows * self.width * self.dtype.itemsize
            self.ring.transport.after_receive(slot, num_bytes)
            yield Arrival(self, index, slot.view(message.num_rows, self.width, self.dtype))
            self.ring.transport.release(slot)
            self._receives.free.append(slot)
            self.progress()
        self._finish()

    def reply(self, index: int, rows_HF: Tensor) -> None:
        message = self.incoming[index]
        while not self._replies_out.free:
            self._wait_any()
        slot = self._replies_out.take()
        slot.view(message.num_rows, self.reply_width, self.dtype).copy_(rows_HF)
        self._pack(self._replies_out, slot, index, message.num_rows * self.reply_width)
        self._send_packed(self._replies_out, self.incoming, self.reply_width, _REPLY_TAG)

    def _pack(self, channel: _Channel, slot: Slot, index: int, count: int) -> None:
        self.ring.transport.before_send(slot, count * self.dtype.itemsize)
        channel.packed.append((slot, index))

    def _send_packed(
        self, channel: _Channel, messages: Sequence[Outgoing | Incoming], width: int, tag: int
    ) -> None:
        while channel.packed and self.ring.transport.may_send(channel.packed[0][0]):
            slot, index = channel.packed.popleft()
            message = messages[index]
            request = self.ring.send(slot, message.num_rows, width, self.dtype, message.peer, tag)
            channel.post(request, slot, index)

    def _can_receive(self, channel: _Channel) -> bool:
        return bool(channel.free) and self.ring.transport.may_receive(channel.free[0])

    def _post_receives(self) -> None:
        while self._next_receive < len(self.incoming) and self._can_receive(self._receives):
            message = self.incoming[self._next_receive]
            slot = self._receives.take()
            request = self.ring.receive(
                slot, message.num_rows, self.width, self.dtype, message.peer, _DATA_TAG
            )
            self._receives.post(request, slot, self._next_receive)
            self._next_receive += 1

    def _post_sends(self) -> None:
        while self._sends.free and self._next_send < len(self.outgoing):
            message = self.outgoing[self._next_send]
            slot = self._sends.take()
            with span(f"ring pack: {self.where}"):
                message.pack(slot.view(message.num_rows, self.width, self.dtype))
            self._pack(self._sends, slot, self._next_send, message.num_rows * self.width)
            self._next_send += 1
        self._send_packed(self._sends, self.outgoing, self.width, _DATA_TAG)

    def _post_reply_receives(self) -> None:
        while self._next_reply < len(self.outgoing) and self._can_receive(self._replies_in):
            message = self.outgoing[self._next_reply]
            slot = self._replies_in.take()
            request = self.ring.receive(
                slot, message.num_rows, self.reply_width, self.dtype, message.peer, _REPLY_TAG
            )
            self._replies_in.post(request, slot, self._next_reply)
            self._next_reply += 1

    def _accept_replies(self) -> None:
        """Hand replies over in the order of the messages they answer: sums are then repeatable."""
        flight = self._replies_in.flight
        while flight and flight[0][0].Test():
            _, slot, index = flight.popleft()
            num_rows = self.outgoing[index].num_rows
            self.ring.transport.after_receive(
                slot, num_rows * self.reply_width * self.dtype.itemsize
            )
            if self.on_reply is not None:
                self.on_reply(index, slot.view(num_rows, self.reply_width, self.dtype))
            self.ring.transport.release(slot)
            self._replies_in.free.append(slot)
            self._replies_done += 1
            self._post_reply_receives()

    def _wait_for_receive(self) -> Slot:
        flight = self._receives.flight
        while not (flight and flight[0][0].Test()):
            self._wait_any(*(entry[0] for entry in list(flight)[:1]))
        return flight.popleft()[1]

    def _wait_any(self, *also: Any) -> None:
        """Sleep until something in flight moves, then do what that allows."""
        heads = [*also]
        heads += [entry[0] for entry in (*self._sends.flight, *self._replies_out.flight)]
        if self._replies_in.flight:
            heads.append(self._replies_in.flight[0][0])
        start = time.perf_counter()
        with span(f"ring wait: {self.where}"):
            if self._copies_pending():
                time.sleep(_NAP)
            else:
                self.ring.comm.wait_any(heads, self.where)
        self.ring.wait_seconds += time.perf_counter() - start
        self.progress()

    def _copies_pending(self) -> bool:
        """Whether something waits for the transport, which no request of MPI's stands for."""
        return bool(
            self._sends.packed
            or self._replies_out.packed
            or (self._receives.free and self._next_receive < len(self.incoming))
            or (self._replies_in.free and self._next_reply < len(self.outgoing))
        )

    def _finish(self) -> None:
        while (
            self._sends.packed
            or self._replies_out.packed
            or self._sends.flight
            or self._next_send < len(self.outgoing)
            or self._replies_out.flight
            or (self.reply_width and self._replies_done < len(self.outgoing))
        ):
            self._wait_any()


class Ring:
    """Buffers and counters of one rank's exchanges.

    `newest` is an array that the newest exchange's layer would compute again for its backward. The
    next exchange drops it: the layer whose backward comes at once finds it, no other one pays for
    it.

    Args:
        comm: the ranks that hold the parts, one each.
        halo_buffer: bytes all message slots together may take.
        prefetch: messages posted ahead in each direction.
        transport: how messages leave and reach this rank.
    """

    def __init__(
        self,
        comm: Communicator,
        *,
        halo_buffer: int = 256 << 20,
        prefetch: int = 2,
        transport: Transport | None = None,
    ) -> None:
        if prefetch < 1:
            raise InputError("--prefetch must be at least 1", value=prefetch)
        if halo_buffer < 4096:
            raise InputError("--halo-buffer must be at least 4 KiB", value=halo_buffer)
        self.comm = comm
        self.halo_buffer = halo_buffer
        self.prefetch = prefetch
        self.transport: Transport = transport or HostTransport()
        self.bytes_sent = 0
        self.wait_seconds = 0.0
        self.peak_bytes = 0
        self.newest: Tensor | None = None
        self._slots: dict[str, list[Slot]] = {}

    def rows_per_message(self, width: int, dtype: torch.dtype, reply_width: int = 0) -> int:
        """Most rows of one message such that all slots together stay within `halo_buffer`.

        Rounded down to a power of two, so that few different schedules exist.
        """
        row_bytes = 2 * self.prefetch * (width + reply_width) * dtype.itemsize
        rows = min(self.halo_buffer, 2 * self.prefetch * LARGEST_MESSAGE) // max(row_bytes, 1)
        if rows < 1:
            raise InputError(
                f"--halo-buffer is too small for one row of {width + reply_width} numbers: "
                f"give at least {row_bytes} bytes",
                value=self.halo_buffer,
            )
        return 1 << (rows.bit_length() - 1)

    def slots(self, needs: dict[str, tuple[int, int]]) -> dict[str, list[Slot]]:
        """For each name so many slots of at least so many bytes, reused from earlier exchanges.

        Slots that earlier exchanges left are dropped first where keeping them would exceed
        `halo_buffer`.
        """
        kept = sum(
            max(slot.near.numel(), needs[name][1] if i < needs[name][0] else 0)
            for name, held in self._slots.items()
            for i, slot in enumerate(held)
        ) + sum(
            max(0, depth - len(self._slots.get(name, []))) * size
            for name, (depth, size) in needs.items()
        )
        if kept > self.halo_buffer:
            self._slots.clear()
        for name, (depth, size) in needs.items():
            held = self._slots.setdefault(name, [])
            for i in range(depth):
                if i == len(held):
                    held.append(self.transport.slot(size))
                elif held[i].near.numel() < size:
                    held[i] = Slot(*_NOTHING)
                    held[i] = self.transport.slot(size)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes())
        return {name: self._slots[name][:depth] for name, (depth, _) in needs.items()}

    def held_bytes(self) -> int:
        return sum(slot.near.numel() for held in self._slots.values() for slot in held)

    def release(self) -> None:
        """Free all slots (between phases with very different widths)."""
        self._slots.clear()

    def send(
        self, slot: Slot, num_rows: int, width: int, dtype: torch.dtype, peer: int, tag: int
    ) -> Any:
        num_bytes = num_rows * width * dtype.itemsize
        self.bytes_sent += num_bytes
        return self.comm.isend(slot.wire[:num_bytes], peer, tag)

    def receive(
        self, slot: Slot, num_rows: int, width: int, dtype: torch.dtype, peer: int, tag: int
    ) -> Any:
        return self.comm.irecv(slot.wire[: num_rows * width * dtype.itemsize], peer, tag)
