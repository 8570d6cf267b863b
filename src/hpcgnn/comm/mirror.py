"""Ranks of which this process is one, and all others are its mirror images.

What this rank sends to the k-th rank after it comes back as the message of the k-th rank before it.
A layer thus runs with messages in one process, as on several ranks that hold the same graph.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.comm.transport.host import HostTransport, Slot
from hpcgnn.errors import CommunicationError

_MOST_IDLE = 1000  # waits in a row in which no request ends


class Mirror(Communicator):
    """Rank 0 of `size` ranks without any other process. Reductions return the own value."""

    def __init__(self, size: int) -> None:
        super().__init__(MPI.COMM_SELF)
        self.size, self._idle = size, 0

    def allgather(self, obj: Any, where: str = "") -> list[Any]:
        return [obj] * getattr(self, "size", 1)

    def alltoallv(
        self, arrays: Sequence[np.ndarray], where: str = "", piece_bytes: int = 0
    ) -> list[np.ndarray]:
        return [arrays[-rank % self.size].copy() for rank in range(self.size)]

    def wait_any(self, requests: Sequence[Any], where: str, status: Any = None) -> int:
        found = next((i for i, request in enumerate(requests) if request.Test()), -1)
        self._idle = self._idle + 1 if found < 0 else 0
        if self._idle > _MOST_IDLE:  # no other process could end the wait
            raise CommunicationError(f"{where!r}: no message of this rank's images is under way")
        return found


class _Request:
    """A request that ends once `completes` returns True."""

    def __init__(self, completes: Callable[[], bool]) -> None:
        self._completes, self._ended = completes, False

    def Test(self, status: Any = None) -> bool:
        self._ended = self._ended or self._completes()
        return self._ended


class _Done:
    """An event of work that is over."""

    def query(self) -> bool:
        return True


class MirrorTransport(HostTransport):
    """The transport of a `Mirror`: copies in the memory of one device, on its current stream."""

    name = "mirror"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sent: dict[tuple[int, int], deque[Tensor]] = defaultdict(deque)
        self._came: dict[int, int] = {}  # bytes of the message in each slot

    def slot(self, num_bytes: int, *, sends: bool) -> Slot:
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return Slot(buffer, buffer)

    def mark(self) -> Any:
        return _Done()

    def send(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        self._sent[-peer % comm.size, tag].append(slot.near[:num_bytes].clone())
        return _Request(lambda: True)

    def receive(self, comm: Communicator, slot: Slot, num_bytes: int, peer: int, tag: int) -> Any:
        return _Request(lambda: self._received(slot, self._sent[peer, tag]))

    def _received(self, slot: Slot, messages: deque[Tensor]) -> bool:
        if messages:
            message = messages.popleft()
            slot.near[: len(message)].copy_(message)
            self._came[id(slot)] = len(message)
            return True
        return False

    def arrived(self, slot: Slot, count: int) -> int:
        return self._came[id(slot)]
