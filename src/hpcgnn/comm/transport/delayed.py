"""A simulated bandwidth and latency, for tests and studies of overlap on one machine.

Each rank has one outgoing link. A message starts on it once it is packed and the previous ones have
left, occupies it for its bytes / bandwidth, and is handed to MPI one latency later. MPI's own time
is added, so the link must be slower than MPI to have an effect.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpcgnn.comm.transport.host import Slot, Transport
from hpcgnn.errors import InputError
from hpcgnn.settings import parse_size

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

LINK = "HPCGNN_LINK"
MOST_SECONDS = 10.0
_NAP = 3e-4  # seconds: on shared cores, a rank that checks often slows those that compute
_UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}  # per second
_LATENCY = re.compile(r"([0-9.]+)(us|ms|s)")


@dataclass(frozen=True)
class Link:
    """A link: bytes per second that a rank can send, and seconds of latency per message."""

    bandwidth: int
    latency: float

    @staticmethod
    def parse(text: str) -> Link:
        """Return the link of a text like `10GB/s,5us`; without a latency it is 0.

        Raises:
            InputError: it is invalid, or the latency is above 10 s.
        """
        rate, comma, after = text.strip().partition(",")
        match = _LATENCY.fullmatch(after.strip())
        try:
            if not rate.rstrip().endswith("/s") or (comma and match is None):
                raise ValueError
            bandwidth = parse_size(rate.rstrip()[:-2])
            latency = float(match[1]) / _UNITS[match[2]] if match else 0.0
            if not (math.isfinite(latency) and latency <= MOST_SECONDS):
                raise ValueError
        except (ValueError, InputError):
            raise InputError(
                f"{LINK} takes a bandwidth and a latency of at most {MOST_SECONDS:.0f} s; write it "
                "like 10GB/s,5us",
                value=text,
            ) from None
        return Link(bandwidth, latency)

    @staticmethod
    def from_environment() -> Link | None:
        """Return the link of HPCGNN_LINK, or None if it is not set."""
        text = os.environ.get(LINK, "")
        return Link.parse(text) if text else None

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:g} GB/s, {self.latency * 1e6:g} us"


@dataclass
class _Late(Slot):
    inner: Slot
    due: float = 0.0


class DelayedTransport:
    """A wrapper of another transport that delays its messages as `link` requires."""

    def __init__(self, inner: Transport, link: Link) -> None:
        self._inner, self._link = inner, link
        self._idle_from = 0.0  # when the last message will have left
        self.name = f"{inner.name}, delayed to {link}"
        self.in_flight, self.in_one_piece = inner.in_flight, inner.in_one_piece
        self.nap = max(inner.nap, _NAP)

    @property
    def reserved(self) -> int:
        return self._inner.reserved

    @property
    def owes(self) -> bool:
        return self._inner.owes

    def begin(self) -> None:
        self._inner.begin()

    def reserve(self, sizes: Sequence[int]) -> None:
        self._inner.reserve(sizes)

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        inner = self._inner.slot(num_bytes, sends=sends)
        return _Late(inner.near, inner.wire, inner)

    def mark(self) -> Any:
        return self._inner.mark()

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        return self._inner.packing(after)

    def before_send(self, slot: Slot, num_bytes: int, peer: int) -> None:
        late = _late(slot)
        self._inner.before_send(late.inner, num_bytes, peer)
        begins = max(time.perf_counter(), self._idle_from)
        self._idle_from = begins + num_bytes / self._link.bandwidth
        late.due = self._idle_from + self._link.latency

    def may_send(self, slot: Slot) -> bool:
        late = _late(slot)
        return time.perf_counter() >= late.due and self._inner.may_send(late.inner)

    def send(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        return self._inner.send(comm, _late(slot).inner, num_bytes, peer, tag)

    def may_receive(self, slot: Slot) -> bool:
        return self._inner.may_receive(_late(slot).inner)

    def receive(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        return self._inner.receive(comm, _late(slot).inner, num_bytes, peer, tag)

    def arrived(self, slot: Slot, count: int) -> int:
        return self._inner.arrived(_late(slot).inner, count)

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        self._inner.after_receive(_late(slot).inner, num_bytes)

    def release(self, slot: Slot) -> None:
        self._inner.release(_late(slot).inner)

    def drop(self, slot: Slot) -> None:
        self._inner.drop(_late(slot).inner)

    def may_acknowledge(self) -> bool:
        return self._inner.may_acknowledge()

    def acknowledge(self, comm: Communicator) -> None:
        self._inner.acknowledge(comm)


def _late(slot: Slot) -> _Late:
    if not isinstance(slot, _Late):
        raise TypeError("a slot of another transport")
    return slot
