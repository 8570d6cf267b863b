"""Ends all ranks if one fails outside `world.run`, or ends its program before the others."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
from types import TracebackType

from hpcgnn.comm.liveness import early
from hpcgnn.comm.liveness.failure import Failure, Ranks, abort, end_job
from hpcgnn.comm.liveness.location import Report
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.errors import CommunicationError

END = "the end of the program"
_POLL_SECONDS = 1e-3
_PATIENCE_SECONDS = 2.0  # a rank that has waited this long is taken to wait for this one
_LOOKS = 2  # in a row


@functools.cache
def guard() -> Guard:
    """Return the guard of this process."""
    return Guard()


class Guard:
    """A watch over the end of the process, once it has a communicator of several ranks.

    An uncaught exception ends the job as inside `world.run`. At the end of the program this rank
    waits for the others, and ends the job if they are waiting for it. Interactive sessions continue
    after an exception.
    """

    def __init__(self) -> None:
        self._comm: Ranks | None = None
        self._former = sys.__excepthook__

    def watch(self, comm: Ranks) -> None:
        """Start to watch; only the newest communicator is used to ask where the others are."""
        if comm.size != MPI.COMM_WORLD.Get_size():
            return
        if self._comm is None:
            if not isinstance(sys.excepthook, early.Hook):
                self._former = sys.excepthook
            sys.excepthook = self.failed
            atexit.register(self.leave)
        self._comm = comm

    def failed(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """End the job after an uncaught exception; installed as `sys.excepthook`."""
        if self._comm is None or MPI.Is_finalized() or _interactive():
            self._former(kind, error, trace)
            return
        if self._former is not sys.__excepthook__:  # a hook that other code installed
            self._former(kind, error, trace)
            abort(self._comm, Failure.of(error).status)
        end_job(self._comm, error)

    def leave(self) -> None:
        """Wait for the others before MPI does, which couldn't report a rank that never comes."""
        comm = self._comm
        if comm is None or MPI.Is_finalized():
            return
        comm.location.at(END)
        request = MPI.COMM_WORLD.Ibarrier()
        stuck, look = 0, time.monotonic() + 1.0
        while not request.Test():
            time.sleep(_POLL_SECONDS)
            if time.monotonic() < look:
                continue
            reports = comm.ask(1.0)
            stuck = stuck + 1 if _all_wait(reports, comm.size - 1) else 0
            if stuck >= _LOOKS:
                end_job(comm, _left_early(comm.rank, reports))
            look = time.monotonic() + 1.0


def _interactive() -> bool:
    inspect = sys.flags.interactive or sys.flags.inspect or os.environ.get("PYTHONINSPECT")
    return bool(inspect) or hasattr(sys, "ps1")


def _all_wait(reports: dict[int, Report], others: int) -> bool:
    """Return whether no other rank computes: each is at its end too, or waits in an operation."""
    waiting = [r for r in reports.values() if r.waiting and r.waited >= _PATIENCE_SECONDS]
    ended = [r for r in reports.values() if not r.waiting and r.place == END]
    return bool(waiting) and len(waiting) + len(ended) == others


def _left_early(rank: int, reports: dict[int, Report]) -> CommunicationError:
    waiting = min(r for r, report in reports.items() if report.waiting)
    return CommunicationError(
        f"reached the end of the program while rank {waiting} waits in "
        f"{reports[waiting].waiting!r}",
        rank=rank,
    )
