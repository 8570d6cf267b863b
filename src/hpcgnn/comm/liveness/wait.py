"""Waiting for MPI without blocking Python: signals are handled and no wait is endless."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from hpcgnn.comm.liveness import shared_memory
from hpcgnn.comm.liveness.location import Location
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.errors import CommunicationError

_SPINS = 300
_SPINS_WITHOUT_CORE = 5
SHORTEST_SLEEP = 1e-5
LONGEST_SLEEP = 1e-3
LOOK_SECONDS = 2.0


def out_of_step(where: str, error: Exception) -> CommunicationError:
    """Return what an MPI error during a wait means, in one line."""
    first = str(error).strip().split("\n")[0][:120]
    return CommunicationError(
        f"{where!r}: MPI says {first!r}: the ranks are at different places in the program, or a "
        "connection failed"
    )


class Waiter:
    """A poller of requests: tests in quick succession first, then sleeps up to a millisecond.

    `limit` is in seconds. When a wait exceeds it, `overdue(where, waited)` is called; it raises, or
    returns to grant the same time again. `look(where, waited)`, called every two seconds before
    that, raises if the wait can't succeed. Time during which this process itself was stopped (a
    suspended job) doesn't count.
    """

    def __init__(
        self,
        limit: float,
        location: Location,
        overdue: Callable[[str, float], None],
        look: Callable[[str, float], None],
    ) -> None:
        self.limit = limit
        self._location = location
        self._overdue, self._look = overdue, look
        # On shared cores, a rank that spins slows the ranks that it waits for.
        alone = shared_memory.local_place()[1] <= (os.cpu_count() or 1)
        self._spins = _SPINS if alone else _SPINS_WITHOUT_CORE

    def test(self, requests: Sequence[MPI.Request]) -> int:
        """Return the index of a finished request, which is now null, or -1. Lets MPI progress."""
        index, flag = MPI.Request.Testany(requests)
        return index if flag and index >= 0 else -1

    def any(
        self, requests: Sequence[MPI.Request], where: str, status: MPI.Status | None = None
    ) -> int:
        """Wait for one of the requests; return its index, or -1 if none is active."""
        try:
            for spin in range(self._spins):
                index, flag = MPI.Request.Testany(requests, status)
                if flag:
                    return max(index, -1)
                if spin % 16 == 15:
                    os.sched_yield()
            return self._sleep_for_any(requests, where, status)
        except MPI.Exception as error:
            raise out_of_step(where, error) from error

    def all(self, requests: Sequence[MPI.Request], where: str) -> None:
        """Wait until every request has finished."""
        while self.any(requests, where) >= 0:
            pass

    def _sleep_for_any(
        self, requests: Sequence[MPI.Request], where: str, status: MPI.Status | None
    ) -> int:
        last = time.monotonic()
        self._location.set_waiting(where)
        waited, granted, nap = 0.0, self.limit, SHORTEST_SLEEP
        look = LOOK_SECONDS
        try:
            while True:
                index, flag = MPI.Request.Testany(requests, status)
                if flag:
                    return max(index, -1)
                if waited > granted:
                    self._overdue(where, waited)
                    granted += self.limit
                    last = time.monotonic()
                if waited > look:
                    self._look(where, waited)
                    look = waited + LOOK_SECONDS
                time.sleep(nap)
                nap = min(1.3 * nap, LONGEST_SLEEP)
                now = time.monotonic()
                waited += min(now - last, 1.0)
                last = now
        finally:
            self._location.waiting = None
