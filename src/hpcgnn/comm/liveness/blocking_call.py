"""A watch over a library that makes blocking MPI calls of its own."""

from __future__ import annotations

import faulthandler
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from hpcgnn.comm.liveness.failure import Ranks, abort, end_job
from hpcgnn.comm.liveness.termination import ENDING, Handler, Terminated, held
from hpcgnn.comm.liveness.watchdog import LostRank

_STDERR = 2


class WatchedRanks(Ranks, Protocol):
    """`Ranks` whose liveness can be examined while a library's call is running."""

    @property
    def timeout(self) -> float:
        """Seconds after which a rank that doesn't answer counts as lost."""

    def examine_silent(self, where: str, waited: float) -> None:
        """Raise LostRank if a rank doesn't answer."""


@contextmanager
def signals_end(comm: Ranks, *, locked: bool) -> Iterator[None]:
    """The signals of `ENDING` end the job at once, as Python can't handle them in a library.

    Handlers that other code installed are kept. If the library holds the GIL (`locked`), signals
    end only this process.
    """
    mine = threading.current_thread() is threading.main_thread()
    former = {s: signal.getsignal(s) for s in ENDING if mine}
    ours = {
        number: handler
        for number, handler in former.items()
        if isinstance(handler, Handler) or handler is signal.default_int_handler
    }
    with _default(ours) if locked or not ours else _heard(comm, ours):
        yield


@contextmanager
def _default(ours: Mapping[signal.Signals, Any]) -> Iterator[None]:
    try:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


@contextmanager
def _heard(comm: Ranks, ours: Collection[int]) -> Iterator[None]:
    """Let a thread hear the signals: ended by one itself, a rank has no status 128 + n."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    thread = threading.Thread(target=_hear, args=(comm, ours, reader), daemon=True)
    former: int | None = None
    try:
        with held():  # a signal raised in between would leave the number set for another file
            former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            thread.start()
        yield
    finally:
        if former is not None:
            signal.set_wakeup_fd(former)
        writer.close()
        if thread.is_alive():
            thread.join()


def _hear(comm: Ranks, ours: Collection[int], reader: socket.socket) -> None:
    with reader:
        while heard := reader.recv(64):
            for number in heard:
                # While this rank is leaving, the signal is its own, and another ends the job.
                if number in ours and not comm.location.leaving:
                    end_job(comm, Terminated(number))
                    abort(comm, 128 + number)


class BlockingCall:
    """A context in which a thread checks every `comm.timeout` seconds that all ranks still answer.

    It ends the job when one doesn't. The call itself may take any time.

    Args:
        locked: the library holds the GIL, so that no thread can run. Then the call must be short:
            after `comm.timeout` seconds the process ends with a traceback.
    """

    def __init__(self, comm: WatchedRanks, where: str, *, locked: bool = False) -> None:
        self._comm, self._where, self._locked = comm, where, locked
        self._over = threading.Event()

    def __enter__(self) -> None:
        if self._comm.size == 1:
            return
        if self._locked:
            faulthandler.dump_traceback_later(self._comm.timeout, exit=True, file=_STDERR)
        else:
            threading.Thread(target=self._watch, name="hpcgnn-watch", daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._locked:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        waited = 0.0
        while not self._over.wait(self._comm.timeout):
            waited += self._comm.timeout
            try:
                self._comm.examine_silent(self._where, waited)
            except LostRank as error:
                if not self._over.is_set():
                    end_job(self._comm, error)
