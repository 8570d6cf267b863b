"""A time limit on the start of MPI, which Python code in the main thread can't enforce."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from hpcgnn.comm.launcher import end_job, launched
from hpcgnn.comm.liveness.absent import Neighbours
from hpcgnn.comm.liveness.limit import DEFAULT_SECONDS, from_environment
from hpcgnn.comm.liveness.shared_memory import local_place
from hpcgnn.comm.liveness.termination import ENDING
from hpcgnn.errors import CommunicationError, InputError, warn

_FORWARD_SECONDS = 0.3
_LOOK_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 5.0
_LOWER_SECONDS = 2.0  # time for the lowest rank of a node to end the job
_SAID_SECONDS = 10.0
_SAID_ELSEWHERE_SECONDS = 30.0  # on nodes without rank 0, which may be the missing one


@contextmanager
def bounded_start(who: str) -> Iterator[None]:
    """Bound a call that waits for all ranks, doesn't hold the GIL and can't be interrupted.

    After the limit, at a signal of `ENDING`, and where a rank of this node has ended, this
    process ends: the main thread is in the call, so another one hears the signals. `who` is this
    rank in the message.
    """
    try:
        limit = from_environment()
    except InputError:
        limit = DEFAULT_SECONDS  # reported later, when all ranks can be told
    mine = threading.current_thread() is threading.main_thread()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False) if mine else -1
    watch = threading.Thread(target=_Watch(who, limit).listen, args=(reader,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        if mine:
            signal.set_wakeup_fd(former)
        writer.close()
        watch.join()


class _Watch:
    def __init__(self, who: str, limit: float) -> None:
        self._who, self._limit = who, limit
        self._begin = time.monotonic()
        self._look = _LOOK_SECONDS
        self._missing = ""
        rank, size = launched()
        first = 0 if rank == 0 else _SAID_ELSEWHERE_SECONDS
        self._said = max(first, _SAID_SECONDS) if local_place()[0] == 0 and size > 1 else limit

    def listen(self, reader: socket.socket) -> None:
        """Watch for signals and the limit until the other socket is closed."""
        with reader:
            while True:
                waited = time.monotonic() - self._begin
                if waited >= self._limit:
                    self._end(
                        f"waited {self._limit:.0f} s in the start of MPI for the other ranks: one "
                        "ended before it, or can't be reached (--timeout gives more time)"
                    )
                if not select.select((reader,), (), (), min(self._limit - waited, 1.0))[0]:
                    self._tell(waited)
                    continue
                with suppress(OSError):
                    heard = reader.recv(64)
                    if not heard:
                        return
                    for number in heard:
                        if number in ENDING:
                            os._exit(128 + number)

    def _tell(self, waited: float) -> None:
        """Report after a while what is awaited; end if ranks have ended, as seen twice in a row."""
        if waited >= self._look:
            found = Neighbours.look()
            missing = found.missing if found is not None else ""
            if found is not None and missing and missing == self._missing:
                time.sleep(0 if launched()[0] == min(found.alive) else _LOWER_SECONDS)
                self._end(f"waits in the start of MPI for {missing}, which ended before it")
            self._missing = missing
            self._look = waited + (0 if missing else _LOOK_AGAIN_SECONDS)
        if waited >= self._said:
            self._said = self._limit
            warn(
                f"hpcgnn: note: {self._who} has waited {waited:.0f} s in the start of MPI for the "
                "other ranks: one is slow, ended before it, or can't be reached; this rank gives "
                f"up after {self._limit:.0f} s"
            )

    def _end(self, problem: str) -> NoReturn:
        from hpcgnn.comm.liveness.failure import Failure

        error = CommunicationError(f"{self._who} {problem}")
        Failure.of(error).print()
        time.sleep(_FORWARD_SECONDS)
        end_job(error.exit_status)
        os._exit(error.exit_status)
