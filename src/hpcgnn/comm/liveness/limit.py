"""The longest wait for another rank, and what holds it where Python can't: while MPI starts."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hpcgnn.errors import CommunicationError, InputError

TIMEOUT = "HPCGNN_TIMEOUT"
DEFAULT_SECONDS = 600.0
MOST_SECONDS = 1e8
_FORWARD_SECONDS = 0.3
_ENDING = (signal.SIGTERM, signal.SIGINT)


def seconds(text: str) -> float:
    """A limit from its text; ValueError unless it is a number above 0 that a clock can hold."""
    value = float(text)
    if not (math.isfinite(value) and 0 < value <= MOST_SECONDS):
        raise ValueError
    return value


def from_environment() -> float:
    """HPCGNN_TIMEOUT, or 600.

    Raises:
        InputError: it is no number of seconds.
    """
    text = os.environ.get(TIMEOUT, "")
    try:
        return seconds(text) if text else DEFAULT_SECONDS
    except ValueError:
        raise InputError(
            f"{TIMEOUT} must be a number of seconds above 0, at most {MOST_SECONDS:.0e}",
            value=text,
        ) from None


@contextmanager
def bounded_start(who: str) -> Iterator[None]:
    """Around a call without Python's lock that waits for all ranks and can't be left.

    After the limit, and at SIGTERM or SIGINT, this process ends: the main thread is in the call,
    so another one hears the signals. `who` is this rank in the message.
    """
    try:
        limit = from_environment()
    except InputError:
        limit = DEFAULT_SECONDS  # refused when all ranks can be told
    mine = threading.current_thread() is threading.main_thread()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False) if mine else -1
    watch = threading.Thread(target=_watch, args=(reader, limit, who), daemon=True)
    watch.start()
    try:
        yield
    finally:
        if mine:
            signal.set_wakeup_fd(former)
        writer.close()
        watch.join()


def _watch(reader: socket.socket, limit: float, who: str) -> None:
    """Ends when the other side is closed."""
    from hpcgnn.comm.liveness.failure import Failure

    end = time.monotonic() + limit
    with reader:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                error = CommunicationError(
                    f"{who} waited {limit:.0f} s in the start of MPI for the other ranks: one "
                    "ended before, or can't be reached (--timeout gives more time)"
                )
                Failure.of(error).print()
                time.sleep(_FORWARD_SECONDS)
                os._exit(error.exit_status)
            if not select.select((reader,), (), (), min(left, 1.0))[0]:
                continue
            with suppress(OSError):
                heard = reader.recv(64)
                if not heard:
                    return
                for number in heard:
                    if number in _ENDING:
                        os._exit(128 + number)
