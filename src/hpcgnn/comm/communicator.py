"""The ranks of a job and the collective operations between them."""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from hpcgnn.comm import collectives
from hpcgnn.comm.background import BackgroundSums
from hpcgnn.comm.collectives import as_array, as_bytes, is_tensor
from hpcgnn.comm.handles import KEPT, UnderWay, free, given_or_all
from hpcgnn.comm.liveness import watchdog
from hpcgnn.comm.liveness.blocking_call import BlockingCall, signals_end
from hpcgnn.comm.liveness.failure import translated
from hpcgnn.comm.liveness.guard import guard
from hpcgnn.comm.liveness.heartbeat import Heartbeat, Peer, local_address
from hpcgnn.comm.liveness.limit import DEFAULT_SECONDS, from_environment, given
from hpcgnn.comm.liveness.location import Location, Report, Visit
from hpcgnn.comm.liveness.wait import Waiter
from hpcgnn.comm.liveness.watchdog import Watchdog
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.comm.unfinished import Unfinished, whole
from hpcgnn.errors import Agreed, CommunicationError, HpcgnnError, InputError

_MOST = 1 << 50  # bytes of an object


class TensorSums(Protocol):
    """Sums of tensors over the ranks by another library than MPI."""

    def add_up(self, values: Any, where: str) -> Any:
        """Replace the values, on every rank, by their sums, and return them. Collective."""

    def close(self) -> object:
        """Free what the library holds. Collective."""


class Communicator:
    """A group of ranks. Every wait is polled: signals are handled, and no wait is endless.

    Attributes: `rank`, `size`, `mpi` (this object's own duplicate of the mpi4py communicator);
    `compared`: weak references to objects that were found to be the same on all ranks;
    `device_sums`: sums of tensors that stay on the GPUs, once they have been requested; `address`:
    where the other ranks reach this process.
    `where` in every operation says in a few words what it is for; it appears in errors.
    Every operation can raise CommunicationError when a rank doesn't answer in `timeout` seconds
    (default: HPCGNN_TIMEOUT, or 600).
    """

    def __init__(
        self,
        mpi: MPI.Comm | None = None,
        *,
        timeout: float | None = None,
        location: Location | None = None,
    ) -> None:
        parent = given_or_all(mpi)
        self.rank = parent.Get_rank()
        self.size = parent.Get_size()
        self.location = location or Location()
        self.compared: weakref.WeakSet[Any] = weakref.WeakSet()
        self.device_sums: TensorSums | None = None
        self.address = "127.0.0.1"
        self._watchdog: Watchdog | None = None
        self._strict = False
        self._background: BackgroundSums | None = None
        self._left: list[BackgroundSums] = []
        limit, problem = DEFAULT_SECONDS, None
        try:
            limit = from_environment() if timeout is None else given(timeout)
        except InputError as error:  # told to the others, who would wait for this rank
            problem = error
        self._heartbeat: Heartbeat | None = None
        self._spans_job = self.size == MPI.COMM_WORLD.Get_size() > 1
        self._waiter = Waiter(limit, self.location, self._overdue, self._look)
        self.mpi, request = parent.Idup()
        self._waiter.any([request], "start")
        self._owned = [self.mpi]
        under_way = UnderWay()
        weakref.finalize(self, free, self._owned, under_way).atexit = False
        apart, request = self.mpi.Idup()
        self._owned.append(apart)
        self._waiter.any([request], "start")
        self.unfinished = Unfinished(apart, self._wait, self._tell, under_way)
        self.agree(problem, "start")
        self._heartbeat = self._start_heartbeat()
        self._watchdog = Watchdog(self._heartbeat, self.location)
        strict_P = self.allgather(os.environ.get("HPCGNN_STRICT", "0") not in ("", "0"), "start")
        self._strict = any(strict_P)
        if self.size > 1:
            guard().watch(self)

    @classmethod
    def of(cls, mpi: MPI.Comm | None = None) -> Communicator:
        """Return the communicator kept for `mpi` (all ranks by default), made by the first call.

        Collective. MPI supports only about two thousand communicators.
        """
        parent = given_or_all(mpi)
        found = parent.Get_attr(KEPT)
        if not isinstance(found, cls) or found.mpi == MPI.COMM_NULL:
            found = cls(parent)
            parent.Set_attr(KEPT, found)
        return found

    def _start_heartbeat(self) -> Heartbeat:
        own = Peer.here(self.rank, MPI.COMM_WORLD.Get_rank())
        address = local_address(own, self.allgather(own, "start"))
        self.address = address
        heartbeat = Heartbeat(self.rank, address, self.location.report, self.location.leave)
        token = os.urandom(16) if self.rank == 0 else b""
        peers = self.allgather((replace(own, address=heartbeat.address), token), "start")
        heartbeat.meet([peer for peer, _ in peers], peers[0][1])
        weakref.finalize(self, heartbeat.stop)
        return heartbeat

    @property
    def timeout(self) -> float:
        """Seconds after which a wait gives up."""
        return self._waiter.limit

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._waiter.limit = given(seconds)

    # Waiting and messages between two ranks

    def wait_any(
        self, requests: Sequence[MPI.Request], where: str, status: MPI.Status | None = None
    ) -> int:
        """Wait for one request and return its index (it is then null), or -1 if none is active.

        `status` receives MPI's information about a message that has arrived.
        """
        return self._waiter.any(requests, where, status)

    def wait_all(self, requests: Sequence[MPI.Request], where: str) -> None:
        """Wait until all requests have finished."""
        self._waiter.all(requests, where)

    def status(self) -> MPI.Status:
        """Return a new status object for `wait_any`."""
        return MPI.Status()

    def test(self, requests: Sequence[MPI.Request]) -> int:
        """Return the index of one finished request, which is then null, or -1; never waits."""
        return self._waiter.test(requests)

    def isend(self, buffer: Any, peer: int, tag: int) -> MPI.Request:
        """Start sending a contiguous array or host tensor (tags below 32000)."""
        return self.mpi.Isend([as_bytes(buffer), MPI.BYTE], peer, tag)

    def issend(self, buffer: Any, peer: int, tag: int) -> MPI.Request:
        """Like `isend`, but unfinished until the peer has begun to receive."""
        return self.mpi.Issend([as_bytes(buffer), MPI.BYTE], peer, tag)

    def irecv(self, buffer: Any, peer: int, tag: int) -> MPI.Request:
        """Start receiving into a contiguous array or host tensor of at least the size sent."""
        return self.mpi.Irecv([as_bytes(buffer), MPI.BYTE], peer, tag)

    def _wait(self, request: MPI.Request, where: str) -> None:
        with self.unfinished.waiting(where, request):
            self._waiter.any([request], where)

    def background(self) -> BackgroundSums:
        """Return the background sums of these ranks; the first call makes them, collectively."""
        if self._background is None:
            mpi, request = self.mpi.Idup()
            self._owned.append(mpi)
            self._waiter.any([request], "start of sums")
            self._background = BackgroundSums(mpi, self._waiter)
        return self._background

    def leave_background(self) -> None:
        """Start anew with background sums, after an error that all ranks have seen."""
        if self._background is not None:
            self._left.append(self._background)  # MPI may still write into its arrays
            self._owned.remove(self._background.mpi)
            self._background = None

    # Locations and liveness of ranks

    def at(self, text: str) -> Visit:
        """Set this rank's location: `with comm.at("epoch 12"):`, or a plain call; costs nothing.

        Nested blocks are joined: "epoch 12, forward layer 1". Errors about a missing rank show it.
        """
        return self.location.at(text)

    def ask(self, seconds: float) -> dict[int, Report]:
        """Return the locations of the other ranks that answer within `seconds`."""
        return {} if self._heartbeat is None else self._heartbeat.ask(range(self.size), seconds)

    def stop_others(self, seconds: float) -> None:
        """Make all other ranks leave their with-blocks, and wait until they have."""
        if self._heartbeat is not None:
            self._heartbeat.stop_others(seconds)

    def end_others(self, status: int, seconds: float) -> bool:
        """Make the processes of all other ranks exit; return whether none answers after that."""
        return self._heartbeat is not None and self._heartbeat.end_others(status, seconds)

    @contextmanager
    def blocking_call(self, where: str, *, locked: bool = False) -> Iterator[None]:
        """Guard a library's own blocking MPI calls (ParMETIS, parallel HDF5).

        A rank that doesn't answer still ends the job at the limit, and SIGTERM and SIGINT end this
        process at once, since Python can't handle them inside the library. `locked`: the library
        holds the GIL; then the call itself must not take longer than the limit.
        """
        watch = BlockingCall(self, where, locked=locked)
        with self.at(where), watch, signals_end(self, locked=locked):
            yield

    def examine_silent(self, where: str, waited: float) -> None:
        """Raise LostRank if a rank gives no sign of life."""
        if self._watchdog is not None:
            self._watchdog.examine_silent(range(self.size), where, waited, self.timeout)

    def _overdue(self, where: str, waited: float) -> None:
        if self._watchdog is None:
            raise CommunicationError(
                f"rank {self.rank} waited {waited:.0f} s for the other ranks to start"
            )
        self._watchdog.examine(range(self.size), where, waited, self.timeout)

    def _look(self, where: str, waited: float) -> None:
        """Raise CommunicationError if the wait can't succeed."""
        if self._heartbeat is None or self._watchdog is None:
            return
        if self._heartbeat.told:
            error = CommunicationError(self._heartbeat.told)
            self.unfinished.refuse(error)
            raise error
        # Only one rank asks, since otherwise each pair of ranks would exchange a question; if rank
        # 0 doesn't wait, not all ranks do.
        if self._spans_job and self.rank == 0:
            self._watchdog.examine_standstill(where, waited, self.timeout)

    def _tell(self, why: str) -> None:
        if self._heartbeat is not None:
            self._heartbeat.tell(why)

    def _enter(self, operation: str, where: str, value: Any = None) -> str:
        """Begin a collective operation; return the name under which its waits are reported."""
        place = where or operation.partition(" of ")[0]
        self.unfinished.settle()
        self.check_strictly(operation, where, value)
        return place

    def check_strictly(self, operation: str, where: str = "", value: Any = None) -> None:
        """Under HPCGNN_STRICT=1: raise LostRank unless all ranks are at the same place."""
        if self._strict:
            text = watchdog.signature(operation, where, value)
            watchdog.check(self.mpi, text, lambda r: self._wait(r, text))

    # Collective operations

    def barrier(self, where: str = "") -> None:
        """Return once all ranks have called it."""
        place = self._enter("barrier", where)
        self._wait(self.mpi.Ibarrier(), place)

    @whole
    def allreduce(self, value: Any, op: str = "sum", where: str = "") -> Any:
        """Reduce by sum, min or max; the result is bitwise the same on all ranks and in every run.

        `value`: int or float (gives the same type), numpy array or torch tensor of any shape (gives
        a new one; a tensor on a GPU is copied to the host and back).
        """
        if isinstance(value, int | float):
            array = np.array([value], np.float64 if isinstance(value, float) else np.int64)
        elif is_tensor(value):
            array = as_array(value.cpu())
        else:
            array = np.asarray(value)
        if array.dtype.hasobject:
            raise InputError(
                "allreduce takes numbers, arrays and tensors; the gradient of a parameter that the "
                "loss doesn't use is None: leave it out on all ranks",
                value=type(value).__name__,
            )
        place = self._enter(f"allreduce {op}", where, array)
        flat = np.ascontiguousarray(array).reshape(-1)
        total = collectives.allreduce_array(self.mpi, flat, op, lambda r: self._wait(r, place))
        if isinstance(value, int | float):
            return type(value)(total[0])
        if is_tensor(value):
            return value.new_tensor(total).reshape(value.shape)
        return total.reshape(array.shape) if array.ndim else total[0]

    @whole
    def broadcast(self, obj: Any, root: int = 0, where: str = "") -> Any:
        """Return `obj` of rank `root` on all ranks (what the others pass is ignored)."""
        place = self._enter(f"broadcast from {root}", where)
        payload = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL) if self.rank == root else b""
        length = np.array([len(payload)], np.int64)
        self._wait(self.mpi.Ibcast(length, root), place)
        data = np.empty(int(length[0]), np.uint8)
        if self.rank == root:
            data[:] = np.frombuffer(payload, np.uint8)
        for begin in range(0, data.size, collectives.PIECE_BYTES):
            self._wait(self.mpi.Ibcast(data[begin : begin + collectives.PIECE_BYTES], root), place)
        return obj if self.rank == root else pickle.loads(data.data)

    def gather(self, obj: Any, root: int = 0, where: str = "") -> list[Any] | None:
        """Return a list with one small object per rank on `root`, None on the others."""
        own = np.frombuffer(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), np.uint8)
        nothing = own[:0]
        parts = [own if p == root else nothing for p in range(self.size)]
        got = self.alltoallv(parts, where or f"gather on {root}")
        return [pickle.loads(part.data) for part in got] if self.rank == root else None

    @whole
    def allgather(self, obj: Any, where: str = "") -> list[Any]:
        """Return a list with one small object per rank, on all ranks."""
        place = self._enter("allgather", where)
        own = np.frombuffer(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), np.uint8)
        lengths_P = np.empty(self.size, np.int64)
        self._wait(self.mpi.Iallgather(np.array([own.size], np.int64), lengths_P), place)
        begins_P = np.cumsum(lengths_P) - lengths_P
        total = int(lengths_P.sum())
        if not 1 <= lengths_P.min() <= lengths_P.max() <= _MOST:  # of something else
            raise CommunicationError(
                f"{place}: the ranks are at different places in the program: all must make the "
                "same collective calls, in the same order"
            )
        if total > collectives.LARGEST_MESSAGE:
            raise CommunicationError(f"{place}: {total} bytes are too many to gather on every rank")
        data = np.empty(total, np.uint8)
        self._wait(self.mpi.Iallgatherv(own, [data, lengths_P, begins_P, MPI.BYTE]), place)
        return [
            pickle.loads(data[b : b + n].data) for b, n in zip(begins_P, lengths_P, strict=True)
        ]

    @whole
    def alltoallv(
        self,
        arrays: Sequence[np.ndarray],
        where: str = "",
        piece_bytes: int = collectives.PIECE_BYTES,
    ) -> list[np.ndarray]:
        """Send arrays[p] to rank p; return a list of what each rank sent.

        All arrays of all ranks have the same dtype and trailing shape, and any first dimension.
        No message is larger than `piece_bytes`, and few are in flight at a time.
        """
        row = f" of {arrays[0].dtype} rows {arrays[0].shape[1:]}" if len(arrays) else ""
        place = self._enter(f"alltoallv{row}", where)
        return collectives.alltoallv(self, arrays, place, piece_bytes)

    def agree(self, error: BaseException | None = None, where: str = "") -> None:
        """Raise on all ranks if any rank passes an error: that of the lowest such rank. Collective.

        That rank raises its own error; the others raise one of the same class (HpcgnnError if the
        class is not ours). The job then prints it once.
        """
        place = where or "agree"
        failing_P = self.allgather(error is not None, place)
        if not any(failing_P):
            return
        reporting = failing_P.index(True)
        kind, text = self.broadcast(_portable(error), reporting, place)
        if error is None or self.rank != reporting:
            error = kind(text)
        found = Agreed(reports=self.rank == reporting, alone=not all(failing_P))
        if isinstance(error, HpcgnnError):
            error.agreed = found
        else:
            self.location.surprise = error, found
        raise error

    @contextmanager
    def in_turn(self, where: str = "") -> Iterator[None]:
        """Run the body on rank 0, then rank 1, ...; at the end errors are raised as by `agree`."""
        place = where or "in turn"
        error: Exception | None = None
        for _ in range(self.rank):
            self.barrier(place)
        try:
            yield
        except Exception as caught:
            error = caught
        for _ in range(self.rank, self.size):
            self.barrier(place)
        self.agree(error, place)

    def sub(self, ranks: Sequence[int]) -> Communicator | None:
        """Return a communicator of `ranks` in that order, on those; None elsewhere. Collective."""
        self.barrier("sub")
        member = self.rank in ranks
        with self.blocking_call("sub"):
            part = self.mpi.Split(
                0 if member else MPI.UNDEFINED, ranks.index(self.rank) if member else 0
            )
        if not member:
            return None
        made = Communicator(part, timeout=self.timeout, location=self.location)
        part.Free()
        return made

    def close(self) -> None:
        """Free this communicator's resources; it can't be used afterwards. Collective."""
        self.barrier("close")
        if self.device_sums is not None:
            self.device_sums.close()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self.unfinished.close()
        if self._background is not None:
            self._background.mpi.Free()
        self.mpi.Free()


def _portable(error: BaseException | None) -> tuple[type[HpcgnnError], str]:
    """Return the class and text with which other ranks can raise this error."""
    ours = None if error is None else translated(error)
    if ours is not None:
        return type(ours), str(ours)
    return HpcgnnError, f"{type(error).__name__}: {error}"
