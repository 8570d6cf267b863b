"""The ranks of a job and the collective operations between them."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from mpi4py import MPI

from hpcgnn.comm import exchange, reduce
from hpcgnn.comm.buffers import as_array, as_bytes, is_tensor
from hpcgnn.comm.wait import Waiter
from hpcgnn.errors import CommunicationError, HpcgnnError, InputError

DEFAULT_TIMEOUT = 600.0


def _timeout_from_environment() -> float:
    text = os.environ.get("HPCGNN_TIMEOUT", "")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError("HPCGNN_TIMEOUT must be a number of seconds above 0", value=text)
    return seconds


class Communicator:
    """A group of ranks. Every wait is polled: signals are handled, and no wait is endless.

    Attributes: `rank`, `size`, `mpi` (this object's own duplicate of the mpi4py communicator).
    `where` in every operation says in a few words what it is for; it appears in errors.
    Every operation can raise CommunicationError when a rank doesn't answer in `timeout` seconds
    (default: HPCGNN_TIMEOUT, or 600).
    """

    def __init__(self, mpi: MPI.Comm | None = None, *, timeout: float | None = None) -> None:
        parent = MPI.COMM_WORLD if mpi is None else mpi
        self.rank = parent.Get_rank()
        self.size = parent.Get_size()
        self._place = ("start", time.monotonic())
        self._waiter = Waiter(timeout or _timeout_from_environment(), self._overdue)
        self.mpi, request = parent.Idup()
        self._wait(request, "start")

    @property
    def timeout(self) -> float:
        """Seconds after which a wait gives up."""
        return self._waiter.limit

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._waiter.limit = seconds

    # Waiting and messages between two ranks

    def wait_any(self, requests: Sequence[MPI.Request], where: str) -> int:
        """Wait for one request: its index (the request is then null), -1 when none is active."""
        return self._waiter.any(requests, where)

    def wait_all(self, requests: Sequence[MPI.Request], where: str) -> None:
        """Wait until all requests have finished."""
        self._waiter.all(requests, where)

    def test(self, requests: Sequence[MPI.Request]) -> int:
        """Index of one finished request, which is then null, or -1; never waits."""
        return self._waiter.test(requests)

    def isend(self, buffer: Any, peer: int, tag: int) -> MPI.Request:
        """Start sending a contiguous array or host tensor (tags below 32000)."""
        return self.mpi.Isend([as_bytes(buffer), MPI.BYTE], peer, tag)

    def irecv(self, buffer: Any, peer: int, tag: int) -> MPI.Request:
        """Start receiving into a contiguous array or host tensor of at least the size sent."""
        return self.mpi.Irecv([as_bytes(buffer), MPI.BYTE], peer, tag)

    def _wait(self, request: MPI.Request, where: str) -> None:
        self._waiter.any([request], where)

    def _overdue(self, where: str, waited: float) -> None:
        raise CommunicationError(
            f"rank {self.rank} waited {waited:.0f} s in {where!r} and a rank does not answer"
        )

    # Collective operations

    def barrier(self, where: str = "") -> None:
        """Return when all ranks have come here."""
        self._wait(self.mpi.Ibarrier(), where or "barrier")

    def allreduce(self, value: Any, op: str = "sum", where: str = "") -> Any:
        """Sum, min or max over the ranks, the same bits on each and in every run.

        `value`: int or float (gives the same type), numpy array or torch tensor of any shape
        (gives a new one; a tensor on a GPU passes through the host).
        """
        place = where or "allreduce"
        if isinstance(value, int | float):
            array = np.array([value], np.float64 if isinstance(value, float) else np.int64)
        elif is_tensor(value):
            array = as_array(value.cpu())
        else:
            array = np.asarray(value)
        flat = np.ascontiguousarray(array).reshape(-1)
        total = reduce.allreduce_array(self.mpi, flat, op, lambda r: self._wait(r, place))
        if isinstance(value, int | float):
            return type(value)(total[0])
        if is_tensor(value):
            return value.new_tensor(total).reshape(value.shape)
        return total.reshape(array.shape) if array.ndim else total[0]

    def broadcast(self, obj: Any, root: int = 0, where: str = "") -> Any:
        """`obj` of rank `root`, on all ranks (what the others pass is ignored)."""
        place = where or "broadcast"
        payload = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL) if self.rank == root else b""
        length = np.array([len(payload)], np.int64)
        self._wait(self.mpi.Ibcast(length, root), place)
        data = np.empty(int(length[0]), np.uint8)
        if self.rank == root:
            data[:] = np.frombuffer(payload, np.uint8)
        for begin in range(0, data.size, exchange.PIECE_BYTES):
            self._wait(self.mpi.Ibcast(data[begin : begin + exchange.PIECE_BYTES], root), place)
        return obj if self.rank == root else pickle.loads(data.data)

    def gather(self, obj: Any, root: int = 0, where: str = "") -> list[Any] | None:
        """A list with one small object per rank on `root`, None on the others."""
        own = np.frombuffer(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), np.uint8)
        nothing = own[:0]
        parts = [own if p == root else nothing for p in range(self.size)]
        got = self.alltoallv(parts, where or "gather")
        return [pickle.loads(part.data) for part in got] if self.rank == root else None

    def allgather(self, obj: Any, where: str = "") -> list[Any]:
        """A list with one small object per rank, on all ranks."""
        place = where or "allgather"
        own = np.frombuffer(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), np.uint8)
        lengths_P = np.empty(self.size, np.int64)
        self._wait(self.mpi.Iallgather(np.array([own.size], np.int64), lengths_P), place)
        begins_P = np.cumsum(lengths_P) - lengths_P
        total = int(lengths_P.sum())
        if total >= 2**31:
            raise CommunicationError(f"{place}: {total} bytes are too many to gather everywhere")
        data = np.empty(total, np.uint8)
        self._wait(self.mpi.Iallgatherv(own, [data, lengths_P, begins_P, MPI.BYTE]), place)
        return [
            pickle.loads(data[b : b + n].data) for b, n in zip(begins_P, lengths_P, strict=True)
        ]

    def alltoallv(
        self,
        arrays: Sequence[np.ndarray],
        where: str = "",
        piece_bytes: int = exchange.PIECE_BYTES,
    ) -> list[np.ndarray]:
        """arrays[p] goes to rank p; returns what came from each rank.

        All arrays of all ranks have one dtype and trailing shape, and any first dimension.
        No message is larger than `piece_bytes`, and few are in flight at a time.
        """
        return exchange.alltoallv(self, arrays, where or "alltoallv", piece_bytes)

    def agree(self, error: BaseException | None = None, where: str = "") -> None:
        """Called by all: when any rank brings an error, all raise the lowest such rank's.

        Raises that rank's own error there; elsewhere one of the same class (an HpcgnnError
        for a class that is not ours). The job then prints it once.
        """
        place = where or "agree"
        lowest = self.allreduce(self.size if error is None else self.rank, "min", place)
        if lowest == self.size:
            return
        kind, text = HpcgnnError, ""
        if error is not None:
            ours = isinstance(error, HpcgnnError)
            kind = type(error) if ours else HpcgnnError  # type: ignore[assignment]
            text = str(error) if ours else f"{type(error).__name__}: {error}"
        kind, text = self.broadcast((kind, text), lowest, place)
        if error is None or self.rank != lowest:
            error = kind(text)
        error.__dict__["speaker"] = lowest
        raise error

    @contextmanager
    def in_turn(self, where: str = "") -> Iterator[None]:
        """The body runs on rank 0, then on rank 1, ...; all leave together at the end."""
        place = where or "in turn"
        for _ in range(self.rank):
            self.barrier(place)
        yield
        for _ in range(self.rank, self.size):
            self.barrier(place)
