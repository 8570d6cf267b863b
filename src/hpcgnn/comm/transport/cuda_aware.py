"""Messages of a GPU by an MPI library that reads its memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from hpcgnn.comm.transport.host import Slot
from hpcgnn.comm.transport.staged import IN_FLIGHT, Copier


@dataclass
class _Shared(Slot):
    done: Any  # kernels are done with it


class CudaAwareTransport:
    """MPI reads and writes device memory itself, once kernels are done with it."""

    name = "CUDA-aware MPI"
    in_flight = IN_FLIGHT

    def __init__(self, copier: Copier) -> None:
        self._copier = copier

    def slot(self, num_bytes: int) -> Slot:
        buffer = self._copier.near(num_bytes)
        return _Shared(buffer, buffer, self._copier.mark())

    def mark(self) -> Any:
        return self._copier.mark()

    def packing(self, after: Any) -> AbstractContextManager[Any]:
        return self._copier.packing(after)

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
