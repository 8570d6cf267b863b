"""How a message leaves and reaches a rank: the memory MPI sees, and the memory kernels see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


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
    """What a ring asks for. None of it waits: what is not ready is asked for again."""

    name: str

    def slot(self, num_bytes: int) -> Slot:
        """A new buffer."""

    def before_send(self, slot: Slot, num_bytes: int) -> None:
        """Kernels that fill `slot.near` are queued: begin to make `slot.wire` hold the same."""

    def may_send(self, slot: Slot) -> bool:
        """Whether MPI may read `slot.wire` now."""

    def may_receive(self, slot: Slot) -> bool:
        """Whether MPI may write to `slot.wire` now."""

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        """MPI has filled `slot.wire`: kernels queued from now on find the same in `slot.near`."""

    def release(self, slot: Slot) -> None:
        """All kernels that read `slot.near` are queued."""


class HostTransport:
    """Messages lie in host memory, and MPI reads them there."""

    name = "host"

    def slot(self, num_bytes: int) -> Slot:
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        return Slot(buffer, buffer)

    def before_send(self, slot: Slot, num_bytes: int) -> None:
        pass

    def may_send(self, slot: Slot) -> bool:
        return True

    def may_receive(self, slot: Slot) -> bool:
        return True

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        pass

    def release(self, slot: Slot) -> None:
        pass


class Copier(Protocol):
    """Copies between a device and the host that run beside kernels, and events to order them by.

    An event is anything with `query() -> bool`: whether the work before it is done.
    """

    def near(self, num_bytes: int) -> Tensor:
        """New memory where kernels work."""

    def wire(self, num_bytes: int) -> Tensor:
        """New memory where MPI works, which copies can reach in the background."""

    def mark(self) -> Any:
        """The event of everything that kernels have been asked for so far."""

    def to_wire(self, wire: Tensor, near: Tensor, after: Any) -> Any:
        """Begin to copy once `after` has happened; the event of its end."""

    def to_near(self, near: Tensor, wire: Tensor, after: Any) -> Any:
        """The same the other way round; kernels queued from now on wait for it."""


@dataclass
class _Staged(Slot):
    left: Any  # near -> wire has ended
    landed: Any  # wire -> near has ended
    used: Any  # kernels are done with near


class StagedTransport:
    """Messages pass through pinned host memory, copied beside kernels and other messages."""

    name = "staged through pinned host memory"

    def __init__(self, copier: Copier) -> None:
        self._copier = copier

    def slot(self, num_bytes: int) -> Slot:
        near, wire = self._copier.near(num_bytes), self._copier.wire(num_bytes)
        now = self._copier.mark()  # the memory may be that of tensors which kernels still read
        return _Staged(near, wire, now, now, now)

    def before_send(self, slot: Slot, num_bytes: int) -> None:
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


@dataclass
class _Shared(Slot):
    done: Any  # kernels are done with it


class CudaAwareTransport:
    """MPI reads and writes device memory itself, once kernels are done with it."""

    name = "CUDA-aware MPI"

    def __init__(self, copier: Copier) -> None:
        self._copier = copier

    def slot(self, num_bytes: int) -> Slot:
        buffer = self._copier.near(num_bytes)
        return _Shared(buffer, buffer, self._copier.mark())

    def before_send(self, slot: Slot, num_bytes: int) -> None:
        _shared(slot).done = self._copier.mark()

    def may_send(self, slot: Slot) -> bool:
        return bool(_shared(slot).done.query())

    def may_receive(self, slot: Slot) -> bool:
        return bool(_shared(slot).done.query())

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        pass

    def release(self, slot: Slot) -> None:
        _shared(slot).done = self._copier.mark()


def _shared(slot: Slot) -> _Shared:
    if not isinstance(slot, _Shared):
        raise TypeError("a slot of another transport")
    return slot
