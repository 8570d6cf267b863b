"""One exchange of rows in ring order.

At step k rank r sends to (r + k) mod P and receives from (r - k) mod P. Every message waits for a
free slot of the ring. Sends are synchronous, since otherwise MPI would buffer any number of short
messages for a rank that is late. Because all ranks order their messages by (step, piece), the
earliest unfinished message can always proceed: no deadlock. Replies return in the opposite
direction.

An exchange that its caller leaves by an exception is completed before the rank's next operation:
its remaining messages are sent empty, from which the peers learn of the error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from hpcgnn.comm.arrivals import Arrival
from hpcgnn.comm.channel import Channel, Incoming, InFlight, Outgoing
from hpcgnn.comm.liveness.wait import out_of_step
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport.host import Slot
from hpcgnn.errors import CommunicationError
from hpcgnn.timeline import span

_DATA_TAG, _REPLY_TAG = 11, 12
_NOTHING = torch.empty(0, dtype=torch.uint8)


class Exchange:
    """A ring exchange in progress. Iterate to receive; call `progress` between pieces of work.

    Args:
        hold_sends: pack no message before `release`.
        hold_replies: accept no reply before `release`.
        in_flight: bytes to have in flight in each direction, as far as short messages allow.
    """

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
        hold_sends: bool = False,
        hold_replies: bool = False,
        in_flight: int = 0,
    ) -> None:
        self.ring = ring
        self.in_flight = in_flight
        self.where = where
        self.outgoing, self.incoming = outgoing, incoming
        self.width, self.reply_width = width, reply_width
        self.dtype = dtype
        self.on_reply = on_reply
        self.at_once = at_once
        ring.begun += 1
        self.place = crc32(f"{ring.begun} {where} {width} {reply_width} {dtype}".encode())
        self._given_up = self._finished = False
        self._posting = False
        self._hold_sends = hold_sends
        self._hold_replies = hold_replies
        self._status = ring.comm.status()
        self._receives = Channel([])
        self._sends = Channel([])
        self._replies_out = Channel([])
        self._replies_in = Channel([])
        self._next_arrival = 0  # the first message not yet handed out
        self._read: Slot | None = None  # the slot of the last arrival
        ring.comm.unfinished.begin(self)
        self._take_slots()
        # Held messages are packed from results of the work before them, so they wait for all of it.
        self._ready = None if hold_sends else ring.transport.mark()
        self._advance()

    def _take_slots(self) -> None:
        ring, incoming, outgoing = self.ring, self.incoming, self.outgoing
        rows_in = max((m.num_rows for m in incoming), default=0)
        rows_out = max((m.num_rows for m in outgoing), default=0)
        size = self.width * self.dtype.itemsize
        reply_size = self.reply_width * self.dtype.itemsize
        depth = ring.depth(max(rows_in, rows_out) * (size + reply_size), self.in_flight)
        depth_in = len(incoming) if self.at_once else min(len(incoming), depth)
        depth_out = len(outgoing) if self.at_once else min(len(outgoing), depth)
        replies = depth if self.reply_width else 0
        slots = ring.slots(
            {
                "receive": (depth_in, rows_in * size),
                "send": (depth_out, rows_out * size),
                "reply-send": (min(depth_in, replies), rows_in * reply_size),
                "reply-receive": (min(depth_out, replies), rows_out * reply_size),
            }
        )
        self._receives = Channel(slots["receive"])
        self._sends = Channel(slots["send"])
        self._replies_out = Channel(slots["reply-send"])
        self._replies_in = Channel(slots["reply-receive"])

    def progress(self) -> None:
        """Post what fits into free slots and let MPI progress the messages in flight."""
        self._check_open()
        self._advance()

    def release(self) -> None:
        """Pack messages and accept replies from now on: the work that precedes them is done."""
        self._check_open()
        self._hold_sends = self._hold_replies = False
        self._advance()

    def _advance(self) -> None:
        self._acknowledge()
        self._post_receives(self._receives, self.incoming, self.width, _DATA_TAG)
        self._sends.retire_sent()
        self._post_sends()
        if self.reply_width:
            self._replies_out.retire_sent()
            self._send_packed(self._replies_out, self.incoming, self.reply_width, _REPLY_TAG)
            self._answer_nothing()
            self._post_receives(self._replies_in, self.outgoing, self.reply_width, _REPLY_TAG)
            if not self._hold_replies:
                self._accept_replies()

    def __iter__(self) -> Iterator[Arrival]:
        """Yield all messages that `if_come` has not returned, then finish the exchange."""
        while self.awaits:
            self._let_go()
            yield self._arrive()
        self.finish()

    def finish(self) -> None:
        """Complete the exchange once all messages were returned; a second call does nothing."""
        if self._finished:
            return
        self._let_go()
        self._finish()
        self._finished = True
        self.ring.comm.unfinished.end()

    def if_come(self) -> Arrival | None:
        """Return the next message if it has arrived; the previous one is no longer valid."""
        self._let_go()
        self.progress()
        flight = self._receives.flight
        return self._arrive() if flight and self._has_come(flight[0]) else None

    @property
    def awaits(self) -> bool:
        """Whether some messages have not been returned yet."""
        return self._next_arrival < len(self.incoming)

    @property
    def packs(self) -> bool:
        """Whether some messages have not been packed yet."""
        return self._sends.next < len(self.outgoing)

    def wait(self) -> None:
        """Sleep until something in flight makes progress; after `if_come` has returned None."""
        self._wait_any(*list(self._receives.flight)[:1])

    def _arrive(self) -> Arrival:
        slot = self._wait_for_receive()
        self._read = slot
        index = self._next_arrival
        num_rows = self.incoming[index].num_rows
        self._next_arrival += 1
        self.ring.transport.after_receive(slot, num_rows * self.width * self.dtype.itemsize)
        return Arrival(self, index, slot.view(num_rows, self.width, self.dtype))

    def _let_go(self) -> None:
        """Free the slot of the last arrival; the kernels that read it are queued."""
        self._check_open()
        if self._read is not None:
            self.ring.transport.release(self._read)
            self._receives.free.append(self._read)
            self._read = None
            self._advance()

    def reply(self, index: int, rows_MF: Tensor) -> None:
        self._check_open()
        message = self.incoming[index]
        while not self._replies_out.free:
            self._wait_any()
        slot = self._replies_out.take()
        slot.view(message.num_rows, self.reply_width, self.dtype).copy_(rows_MF)
        num_bytes = message.num_rows * self.reply_width * self.dtype.itemsize
        self._pack(self._replies_out, slot, index, num_bytes, message.peer)
        self._send_packed(self._replies_out, self.incoming, self.reply_width, _REPLY_TAG)

    def abandon(self) -> None:
        """Complete the messages of an exchange that was left by an error.

        Messages not sent yet are sent empty, and received ones are dropped.

        Raises:
            CommunicationError: it was left while a message was being posted, so that it is unknown
                which messages were.
        """
        if self._posting:
            raise CommunicationError(
                f"{self.where!r} was left while a message was being posted, so the ranks are out "
                "of step: end the job"
            )
        self._given_up = True
        self._hold_sends = self._hold_replies = False
        if not self._receives.slots and not self._sends.slots:
            self._take_slots()
        for channel in (self._receives, self._sends, self._replies_out, self._replies_in):
            channel.reclaim()
        for slot in (*self._receives.free, *self._replies_in.free):
            self.ring.transport.drop(slot)
        self._sends.next -= self._sends.drop_packed()
        self._replies_out.next -= self._replies_out.drop_packed()
        self._advance()
        while self._num_received < len(self.incoming):
            self._receives.free.append(self._wait_for_receive())
            self._advance()
        self._finish()

    def _check_open(self) -> None:
        if self._given_up:
            raise CommunicationError(
                f"{self.where!r} was abandoned, since another operation began before it ended"
            )

    @property
    def _num_received(self) -> int:
        return self._receives.next - len(self._receives.flight)

    @contextmanager
    def _amid(self) -> Iterator[None]:
        """Mark a section that an error must not interrupt, such as posting a message."""
        self._posting = True
        yield
        self._posting = False

    def _acknowledge(self) -> None:
        while self.ring.transport.may_acknowledge():
            with self._amid():
                self.ring.transport.acknowledge(self.ring.comm)

    def _pack(self, channel: Channel, slot: Slot, index: int, num_bytes: int, peer: int) -> None:
        self.ring.transport.before_send(slot, num_bytes, peer)
        with self._amid():
            channel.packed.append((slot, index))
            channel.next += 1

    def _send_packed(
        self, channel: Channel, messages: Sequence[Outgoing | Incoming], width: int, tag: int
    ) -> None:
        while channel.packed and self.ring.transport.may_send(channel.packed[0][0]):
            with self._amid():
                slot, index = channel.packed.popleft()
                message = messages[index]
                request = self.ring.send(
                    slot, message.num_rows, width, self.dtype, message.peer, tag
                )
                channel.post(request, slot, index)

    def _can_receive(self, channel: Channel) -> bool:
        return bool(channel.free) and self.ring.transport.may_receive(channel.free[0])

    def _post_receives(
        self, channel: Channel, messages: Sequence[Outgoing | Incoming], width: int, tag: int
    ) -> None:
        """Post receives of messages, or of replies to them, into free slots."""
        while channel.next < len(messages) and self._can_receive(channel):
            message = messages[channel.next]
            with self._amid():
                slot = channel.take()
                request = self.ring.receive(
                    slot, message.num_rows, width, self.dtype, message.peer, tag
                )
                channel.post(request, slot, channel.next)
                channel.next += 1

    def _post_sends(self) -> None:
        while self._sends.free and self._sends.next < len(self.outgoing) and not self._hold_sends:
            message = self.outgoing[self._sends.next]
            if self._given_up:
                self._send_nothing(self._sends, message.peer, _DATA_TAG)
                continue
            slot = self._sends.take()
            start = time.perf_counter()
            with span(f"ring pack: {self.where}"), self._packing():
                message.pack(slot.view(message.num_rows, self.width, self.dtype))
                num_bytes = message.num_rows * self.width * self.dtype.itemsize
                self._pack(self._sends, slot, self._sends.next, num_bytes, message.peer)
            self.ring.pack_seconds += time.perf_counter() - start
            # Send before packing the next message, which may take long.
            self._send_packed(self._sends, self.outgoing, self.width, _DATA_TAG)
        self._send_packed(self._sends, self.outgoing, self.width, _DATA_TAG)

    def _packing(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._ready is None else self.ring.transport.packing(self._ready)

    def _answer_nothing(self) -> None:
        """Send empty replies in place of those that are due, after an error."""
        due = self._num_received if self._given_up else 0
        while self._replies_out.free and self._replies_out.next < due:
            peer = self.incoming[self._replies_out.next].peer
            self._send_nothing(self._replies_out, peer, _REPLY_TAG)

    def _send_nothing(self, channel: Channel, peer: int, tag: int) -> None:
        request = self.ring.comm.issend(_NOTHING, peer, tag)
        channel.post(request, channel.take(), channel.next)
        channel.next += 1

    def _accept_replies(self) -> None:
        """Accept replies in the order of the messages they answer, so that sums are repeatable."""
        flight = self._replies_in.flight
        while flight and self._has_come(flight[0]):
            reply = flight.popleft()
            message = self.outgoing[reply.index]
            num_bytes = message.num_rows * self.reply_width * self.dtype.itemsize
            self._check_size(reply, message.peer, num_bytes)
            if not self._given_up:
                self.ring.transport.after_receive(reply.slot, num_bytes)
                if self.on_reply is not None:
                    rows_MF = reply.slot.view(message.num_rows, self.reply_width, self.dtype)
                    self.on_reply(reply.index, rows_MF)
                self.ring.transport.release(reply.slot)
            self._replies_in.free.append(reply.slot)
            self._post_receives(self._replies_in, self.outgoing, self.reply_width, _REPLY_TAG)

    def _wait_for_receive(self) -> Slot:
        flight = self._receives.flight
        while not (flight and self._has_come(flight[0])):
            self._wait_any(*list(flight)[:1])
        arrived = flight.popleft()
        message = self.incoming[arrived.index]
        num_bytes = message.num_rows * self.width * self.dtype.itemsize
        self._check_size(arrived, message.peer, num_bytes)
        return arrived.slot

    def _has_come(self, message: InFlight) -> bool:
        if message.num_bytes < 0:
            try:
                if not message.request.Test(self._status):
                    return False
            except Exception as error:  # MPI's own class, unknown before MPI is loaded
                self.ring.comm.unfinished.break_off(self.where, error, self)
                raise out_of_step(self.where, error) from error
            message.num_bytes = self._status.Get_count()
        return True

    def _check_size(self, message: InFlight, peer: int, num_bytes: int) -> None:
        came = self.ring.transport.arrived(message.slot, message.num_bytes)
        if self._given_up:
            self.ring.transport.drop(message.slot)
            return
        if came == num_bytes:
            return
        what = f"abandoned {self.where!r} after an error of its own"
        if came:
            what = (
                f"sent {came} bytes in {self.where!r}, not {num_bytes}: it is at another place in "
                "the program"
            )
        raise CommunicationError(f"rank {peer} {what}")

    def _wait_any(self, *also: InFlight) -> None:
        """Sleep until something in flight makes progress, then do what that allows."""
        replies = list(self._replies_in.flight)[:1]
        heads = [*also, *self._sends.flight, *self._replies_out.flight, *replies]
        start = time.perf_counter()
        with span(f"ring wait: {self.where}"):
            if self._copies_pending():
                time.sleep(self.ring.transport.nap)
            else:
                requests = [message.request for message in heads]
                with self.ring.comm.unfinished.waiting(self.where, self):
                    index = self.ring.comm.wait_any(requests, self.where, self._status)
                if index >= 0:
                    heads[index].num_bytes = self._status.Get_count()
        self.ring.wait_seconds += time.perf_counter() - start
        self._advance()

    def _copies_pending(self) -> bool:
        """Whether something waits for the transport, for which MPI has no request."""
        return bool(
            self.ring.transport.owes
            or self._sends.packed
            or self._replies_out.packed
            or (self._receives.free and self._receives.next < len(self.incoming))
            or (self._replies_in.free and self._replies_in.next < len(self.outgoing))
        )

    def _finish(self) -> None:
        while (
            self.ring.transport.owes
            or self._sends.packed
            or self._replies_out.packed
            or self._sends.flight
            or self._sends.next < len(self.outgoing)
            or self._replies_out.flight
            or (self.reply_width and self._replies_in.next < len(self.outgoing))
            or self._replies_in.flight
        ):
            self._wait_any()
