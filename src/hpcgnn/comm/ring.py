"""The buffers and counters that a rank's exchanges share; the buffers are allocated once.

Memory for remote rows never exceeds `halo_buffer`, whatever P.
"""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpcgnn.comm.collectives import LARGEST_MESSAGE
from hpcgnn.comm.slots import Needs, Slots
from hpcgnn.comm.transport.host import HostTransport, Slot, Transport
from hpcgnn.errors import InputError
from hpcgnn.settings import LEAST_BUFFER

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

MOST_MESSAGES = 16  # posted ahead at most, if they are short
MESSAGE_BYTES = 1 << 24  # of a message at most: longer ones are no faster
# Of the messages of sums on a CPU, and of those in flight. Nothing hides the making of the first
# message, nor the work that follows the last; a sum costs no more in short messages.
SHORT_BYTES, IN_FLIGHT = 1 << 22, 1 << 24


class Ring:
    """Buffers and counters of one rank's exchanges.

    Args:
        comm: the ranks that hold the parts, one each.
        halo_buffer: bytes that all message slots together may take.
        prefetch: messages posted ahead in each direction.
        transport: how messages are moved between this rank's memory and MPI.

    Attributes:
        begun: exchanges since the beginning of an epoch; it tells ranks that restarted the epoch
            from those that went on.
    """

    def __init__(
        self,
        comm: Communicator,
        *,
        halo_buffer: int = 256 << 20,
        prefetch: int = 2,
        transport: Transport | None = None,
    ) -> None:
        if not _is_count(prefetch) or prefetch < 1:
            raise InputError("--prefetch must be an integer of at least 1", value=prefetch)
        if not _is_count(halo_buffer) or halo_buffer < LEAST_BUFFER:
            raise InputError(
                "--halo-buffer must be an integer number of bytes, at least 4 KiB",
                value=halo_buffer,
            )
        self.comm = comm
        self.halo_buffer = halo_buffer
        self.prefetch = prefetch
        self.transport: Transport = transport or HostTransport()
        self.sent_to_P = np.zeros(comm.size, np.int64)  # bytes
        self.wait_seconds = 0.0
        self.pack_seconds = 0.0
        self.peak_bytes = 0
        self.begun = 0
        self._slots = Slots(halo_buffer)

    @property
    def bytes_sent(self) -> int:
        """Bytes of all messages sent so far."""
        return int(self.sent_to_P.sum())

    def rows_per_message(
        self,
        width: int,
        dtype: torch.dtype,
        reply_width: int = 0,
        *,
        at_once: bool = False,
        longest: int = MESSAGE_BYTES,
    ) -> int:
        """Return the largest number of rows per message that keeps all slots within `halo_buffer`.

        It is rounded down to four significant binary digits, so that few different schedules exist.
        A message has at most `longest` bytes, but at least one row. `at_once`: as many rows as MPI
        can send in one message.

        Raises:
            InputError: `halo_buffer` is too small for messages of one row between several ranks.
        """
        one = max((width + reply_width) * dtype.itemsize, 1)
        if at_once:
            return LARGEST_MESSAGE // one
        row_bytes = 2 * self.prefetch * one
        rows = min(self.halo_buffer // row_bytes, max(longest // one, 1))
        if rows < 1:
            if self.comm.size > 1:  # a single rank sends nothing
                raise too_small(self.halo_buffer, width + reply_width, row_bytes)
            rows = 1
        spare = max(rows.bit_length() - 4, 0)
        return rows >> spare << spare

    def depth(self, num_bytes: int, in_flight: int = 0) -> int:
        """Return how many messages of `num_bytes` bytes are posted ahead in each direction.

        That is `prefetch`, or for short messages as many as reach `in_flight` bytes, at least those
        of the transport.
        """
        if num_bytes == 0:
            return self.prefetch
        in_flight = min(max(self.transport.in_flight, in_flight), self.halo_buffer // 2)
        return max(self.prefetch, min(in_flight // num_bytes, MOST_MESSAGES))

    def slots(self, needs: Needs) -> dict[str, list[Slot]]:
        """Return the slots of each name (number, least bytes) in `needs`, reused if possible.

        Slots of earlier exchanges are dropped first if keeping them would exceed `halo_buffer`.
        """
        slots = self._slots.take(needs, self.transport)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes())
        return slots

    def held_bytes(self) -> int:
        return self._slots.num_bytes()

    def release(self) -> None:
        """Free all slots, as between phases with very different widths."""
        self._slots.held.clear()

    def send(
        self, slot: Slot, num_rows: int, width: int, dtype: torch.dtype, peer: int, tag: int
    ) -> Any:
        num_bytes = num_rows * width * dtype.itemsize
        self.sent_to_P[peer] += num_bytes
        return self.transport.send(self.comm, slot, num_bytes, peer, tag)

    def receive(
        self, slot: Slot, num_rows: int, width: int, dtype: torch.dtype, peer: int, tag: int
    ) -> Any:
        num_bytes = num_rows * width * dtype.itemsize
        return self.transport.receive(self.comm, slot, num_bytes, peer, tag)


def too_small(halo_buffer: int, numbers: int, least: int) -> InputError:
    """Return the error for a buffer below `least` bytes, which a row of `numbers` numbers takes."""
    return InputError(
        f"--halo-buffer is too small for one row of {numbers} numbers: give at least {least} bytes",
        value=halo_buffer,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
