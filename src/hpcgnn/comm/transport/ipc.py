"""Messages within a node, which the receiver copies from its sender's GPU memory by CUDA IPC.

The sender packs into memory that its neighbours can open. Once that is done, MPI sends the location
of the rows in place of the rows. The receiver copies them into a slot of its own, and after the
copy an empty message tells the sender that its slot is free. Peers on other nodes are reached by
another transport, through the same slots.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from hpcgnn.comm.arrivals import NAP
from hpcgnn.comm.transport.host import Slot, Transport
from hpcgnn.comm.transport.shared import CudaMemory, Exports, Imports, RowsPlace
from hpcgnn.comm.transport.staged import IN_FLIGHT, Copier

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

_ANSWER = 10  # added to a message's tag, gives that of its acknowledgement
_EMPTY = np.empty(0, np.uint8)


class Between(Transport, Protocol):
    """A transport between nodes, whose slots can use existing memory."""

    def over(self, near: Tensor) -> Slot: ...


@dataclass
class _Outgoing(Slot):
    begin: int  # offset in the region
    far: Slot | None
    place: np.ndarray  # of the message in flight, as bytes
    goes_far: bool = False
    packed: Any = None


@dataclass
class _Incoming(Slot):
    far: Slot | None
    place: np.ndarray
    landed: Any
    used: Any
    peer: int = -1
    tag: int = -1
    came: RowsPlace | None = None  # received and not yet copied


class IpcTransport:
    """CUDA IPC within a node, and the transport `between` nodes.

    Args:
        copier: the copier that `between` uses.
        neighbours: ranks of this node.
        between: None if all ranks are neighbours.
    """

    in_flight = IN_FLIGHT
    in_one_piece = True
    nap = NAP

    def __init__(
        self,
        copier: Copier,
        memory: CudaMemory,
        neighbours: frozenset[int],
        between: Between | None = None,
    ) -> None:
        self.name = "CUDA IPC"
        if between is not None:
            self.name += f" within nodes, {between.name} between them"
        self._copier, self._memory = copier, memory
        self._neighbours, self._between = neighbours, between
        self._exports, self._imports = Exports(memory), Imports(memory)
        self._owed: deque[tuple[Any, int, int]] = deque()  # copy, rank, tag; oldest first
        weakref.finalize(self, _close, self._imports, self._exports).atexit = False

    @property
    def reserved(self) -> int:
        return self._exports.reserved

    @property
    def owes(self) -> bool:
        return bool(self._owed)

    def begin(self) -> None:
        self._exports.begin()

    def reserve(self, sizes: Sequence[int]) -> None:
        self._exports.reserve(sizes)

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        begin, near = self._exports.take(num_bytes) if sends else (0, self._copier.near(num_bytes))
        far = None if self._between is None else self._between.over(near)
        wire = near if far is None else far.wire
        place = np.empty(RowsPlace.SIZE, np.uint8)
        if sends:
            return _Outgoing(near, wire, begin, far, place)
        now = self._copier.mark()  # kernels may still read tensors that had this memory before
        return _Incoming(near, wire, far, place, now, now)

    def mark(self) -> Any:
        return self._copier.mark()

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        return self._copier.packing(after)

    def before_send(self, slot: Slot, num_bytes: int, peer: int) -> None:
        out = _outgoing(slot)
        out.goes_far = peer not in self._neighbours
        if out.goes_far:
            between, far = self._far(out)
            between.before_send(far, num_bytes, peer)
        else:
            out.packed = self._copier.mark()

    def may_send(self, slot: Slot) -> bool:
        out = _outgoing(slot)
        if out.goes_far:
            between, far = self._far(out)
            return between.may_send(far)
        return bool(out.packed.query())

    def send(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        out = _outgoing(slot)
        if out.goes_far:
            between, far = self._far(out)
            return between.send(comm, far, num_bytes, peer, tag)
        place = self._exports.place(out.begin, num_bytes, peer)
        out.place[:] = np.frombuffer(place.packed(), np.uint8)
        received = comm.irecv(_EMPTY, peer, tag + _ANSWER)
        comm.isend(out.place, peer, tag).Free()  # it was sent once `received` is complete
        return received

    def may_receive(self, slot: Slot) -> bool:
        into = _incoming(slot)
        if into.far is not None and self._between is not None:
            return bool(into.landed.query()) and self._between.may_receive(into.far)
        return bool(into.landed.query())

    def receive(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        into = _incoming(slot)
        into.peer, into.tag = peer, tag
        if peer in self._neighbours:
            return comm.irecv(into.place, peer, tag)
        between, far = self._far(into)
        return between.receive(comm, far, num_bytes, peer, tag)

    def arrived(self, slot: Slot, count: int) -> int:
        into = _incoming(slot)
        if into.peer not in self._neighbours:
            between, far = self._far(into)
            return between.arrived(far, count)
        if count != RowsPlace.SIZE:
            return count
        into.came = RowsPlace.unpack(into.place.tobytes())
        self._imports.told(into.peer, into.came)
        return into.came.num_bytes

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        into = _incoming(slot)
        if into.came is None:
            between, far = self._far(into)
            between.after_receive(far, num_bytes)
            return
        address = self._imports.address(into.peer, into.came)
        copy = partial(self._memory.read, slot.near[:num_bytes], address)
        into.landed = self._copier.fetch(copy, into.used)
        self._owed.append((into.landed, into.peer, into.tag))
        into.came = None

    def release(self, slot: Slot) -> None:
        into = _incoming(slot)
        into.used = self._copier.mark()
        if into.far is not None and self._between is not None:
            self._between.release(into.far)

    def drop(self, slot: Slot) -> None:
        into = _incoming(slot)
        if into.came is not None:
            self._owed.append((into.landed, into.peer, into.tag))
            into.came = None

    def may_acknowledge(self) -> bool:
        return bool(self._owed) and bool(self._owed[0][0].query())

    def acknowledge(self, comm: Communicator) -> None:
        _, peer, tag = self._owed.popleft()
        comm.isend(_EMPTY, peer, tag + _ANSWER).Free()  # the sender waits for it

    def _far(self, slot: _Outgoing | _Incoming) -> tuple[Between, Slot]:
        if self._between is None or slot.far is None:
            raise RuntimeError("a rank of another node, and no transport between nodes")
        return self._between, slot.far


def _close(imports: Imports, exports: Exports) -> None:
    imports.close()
    exports.close()


def _outgoing(slot: Slot) -> _Outgoing:
    if not isinstance(slot, _Outgoing):
        raise TypeError("a slot of another transport, or to receive in")
    return slot


def _incoming(slot: Slot) -> _Incoming:
    if not isinstance(slot, _Incoming):
        raise TypeError("a slot of another transport, or to send from")
    return slot
