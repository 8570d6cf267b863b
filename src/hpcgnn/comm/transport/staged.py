"""GPU messages through pinned host memory, of which no more than requested is allocated."""

from __future__ import annotations

import mmap
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.transport.host import Slot, Wired
from hpcgnn.errors import OutOfMemoryError, human

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU of the process
IN_FLIGHT = 4 << 20  # bytes that a copy and a network move in the time a message takes to start


def pinned(num_bytes: int) -> Tensor:
    """Return new pinned memory: uint8 `[num_bytes]`, freed when the last view of it is gone.

    Raises:
        OutOfMemoryError: the system doesn't let this many bytes be pinned.
    """
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    # Separate pages: two registered ranges must not share one.
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(pages, dtype=np.uint8)
    address = memory.ctypes.data
    status = int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, _PORTABLE))
    if status:
        raise OutOfMemoryError(
            f"{human(num_bytes)} of host memory can't be pinned (CUDA error {status}): "
            "see `ulimit -l` and `hpcgnn doctor`"
        )
    # Runs before the array frees its pages.
    weakref.finalize(memory, _unpin, address).atexit = False
    return torch.from_numpy(memory)


def pinned_copy(x: Tensor) -> Tensor:
    """Return a contiguous copy of `x` in pinned memory."""
    copy = pinned(x.numel() * x.element_size()).view(x.dtype).view(x.shape)
    return copy.copy_(x)


def _unpin(address: int) -> None:
    torch.cuda.synchronize()  # copies from or to this memory may be in progress
    torch.cuda.cudart().cudaHostUnregister(address)


class Copier(Protocol):
    """Copies between a device and the host that run beside kernels, and events that order them.

    An event is any object with `query() -> bool`: whether the work before it is done.
    """

    def near(self, num_bytes: int) -> Tensor:
        """Return new memory that kernels use."""

    def wire(self, num_bytes: int) -> Tensor:
        """Return new memory that MPI uses, and that copies can access in the background."""

    def mark(self) -> Any:
        """Return an event of all kernels queued so far."""

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        """Return a context whose kernels wait for `after` alone, and run before others."""

    def to_wire(self, wire: Tensor, near: Tensor, after: Any) -> Any:
        """Start to copy `near` to `wire` after the event `after`; return the event of its end."""

    def to_near(self, near: Tensor, wire: Tensor, after: Any) -> Any:
        """Copy `wire` to `near` in the same way; kernels queued from now on wait for it."""

    def fetch(self, copy: Callable[[], object], after: Any) -> Any:
        """Like `to_near`, for a copy that `copy` queues on torch's current stream."""

    def wait(self, event: Any) -> None:
        """Let the host wait for the event."""


@dataclass
class _Staged(Slot):
    left: Any  # near -> wire has ended
    landed: Any  # wire -> near has ended
    used: Any  # kernels are done with near


class OnDevice(Wired, ABC):
    """Base of transports with slots in device memory, which are packed beside other kernels."""

    in_flight = IN_FLIGHT

    def __init__(self, copier: Copier) -> None:
        self._copier = copier

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        return self.over(self._copier.near(num_bytes))

    @abstractmethod
    def over(self, near: Tensor) -> Slot:
        """Return a slot that uses existing memory."""

    def mark(self) -> Any:
        return self._copier.mark()

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        return self._copier.packing(after)


class StagedTransport(OnDevice):
    """A transport through pinned host memory, with copies beside kernels and other messages."""

    name = "staged through pinned host memory"

    def over(self, near: Tensor) -> Slot:
        wire = self._copier.wire(near.numel())
        now = self._copier.mark()  # kernels may still read tensors that had this memory before
        return _Staged(near, wire, now, now, now)

    def before_send(self, slot: Slot, num_bytes: int, peer: int) -> None:
        staged, packed = _staged(slot), self._copier.mark()
        staged.left = self._copier.to_wire(slot.wire[:num_bytes], slot.near[:num_bytes], packed)

    def may_send(self, slot: Slot) -> bool:
        return bool(_staged(slot).left.query())

    def may_receive(self, slot: Slot) -> bool:
        return bool(_staged(slot).landed.query())

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        staged = _staged(slot)
        near, wire = slot.near[:num_bytes], slot.wire[:num_bytes]
        staged.landed = self._copier.to_near(near, wire, staged.used)

    def release(self, slot: Slot) -> None:
        _staged(slot).used = self._copier.mark()


def _staged(slot: Slot) -> _Staged:
    if not isinstance(slot, _Staged):
        raise TypeError("a slot of another transport")
    return slot


class CudaCopier:
    """Two copy streams, one per direction, beside the stream that kernels run on.

    Kernels are those of torch's current stream at each call; those that pack messages run on a
    stream of high priority, so that they don't wait for all of the local work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._outward = torch.cuda.Stream(device)
        self._inward = torch.cuda.Stream(device)
        self._packing = torch.cuda.Stream(device, priority=-1)

    def near(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def wire(self, num_bytes: int) -> Tensor:
        return pinned(num_bytes)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    @contextmanager
    def packing(self, after: torch.cuda.Event) -> Iterator[None]:
        self._packing.wait_event(after)
        with torch.cuda.stream(self._packing):
            yield

    def to_wire(self, wire: Tensor, near: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        return self._queue(self._outward, lambda: wire.copy_(near, non_blocking=True), after)

    def to_near(self, near: Tensor, wire: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        return self.fetch(lambda: near.copy_(wire, non_blocking=True), after)

    def fetch(self, copy: Callable[[], object], after: torch.cuda.Event) -> torch.cuda.Event:
        landed = self._queue(self._inward, copy, after)
        torch.cuda.current_stream(self.device).wait_event(landed)
        return landed

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def _queue(
        self, stream: torch.cuda.Stream, copy: Callable[[], object], after: torch.cuda.Event
    ) -> torch.cuda.Event:
        with torch.cuda.stream(stream):
            stream.wait_event(after)
            copy()
            event = torch.cuda.Event()
            event.record(stream)
        return event
