"""Signals that end a process as exceptions, never raised where a C library would drop them.

A signal that arrives inside `held` is raised at the end of the block. Elsewhere it is raised at
once, and again if Python reports that it had to drop the exception.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from hpcgnn.comm.launcher import end_by_signal

_P = ParamSpec("_P")
_R = TypeVar("_R")
_AGAIN_SECONDS = 0.01
_SAME_SECONDS = 0.5  # copies of a signal arrive within this time
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)


class Terminated(BaseException):
    """A signal of `ENDING` other than SIGINT arrived; with-blocks then remove partial output.

    Attributes:
        number: the signal.
        what: what it ended.
        result: what became of that, if anything is to be said.
    """

    what = "ended"
    result = ""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"{self.what} by {name}{': ' if self.result else ''}{self.result}"


def uninterruptible(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a callback of a C library that may not raise: signals are delayed to after it."""

    @wraps(function)
    def called(*args: _P.args, **options: _P.kwargs) -> _R:
        return function(*args, **options)

    return called


# Every decorated function is called from a frame with this code object.
_UNINTERRUPTIBLE = uninterruptible(lambda: None).__code__


def _deliver(number: int, delivered: threading.Event) -> None:
    seconds = _AGAIN_SECONDS
    while not delivered.wait(seconds):
        os.kill(os.getpid(), number)
        seconds = min(2 * seconds, 10 * _AGAIN_SECONDS)


class Handler:
    """A signal handler; `waiting` is a signal that arrived where none may be raised."""

    def __init__(self) -> None:
        self.waiting = 0
        self._raised = -math.inf  # when
        self._holds = 0
        self._delivered: threading.Event | None = None  # ends the thread that delivers again

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._holds:
            self.waiting = number
            return
        inner = frame
        while inner is not None:
            if inner.f_code is _UNINTERRUPTIBLE:
                self.deliver_again(number)
                return
            inner = inner.f_back
        # Another copy, such as the launcher's of a Ctrl-C, would interrupt what removes files.
        if time.monotonic() - self._raised >= _SAME_SECONDS:
            self.waiting = number
            self.raise_waiting()

    def enter(self) -> None:
        self._holds += 1

    def leave(self) -> None:
        self._holds -= 1
        if not self._holds:
            self.raise_waiting()

    def raise_waiting(self) -> None:
        number, self.waiting = self.waiting, 0
        if self._delivered is not None:
            self._delivered.set()
            self._delivered = None
        if number:
            self._raised = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def deliver_again(self, number: int) -> None:
        """Keep the signal waiting, and send it again until it could be raised."""
        self.waiting, self._raised = number, -math.inf
        if self._delivered is None:
            self._delivered = threading.Event()
            arguments = (number, self._delivered)
            threading.Thread(target=_deliver, args=arguments, daemon=True).start()

    @uninterruptible  # what is raised here would be dropped again, for good
    def swallowed(self, dropped: sys.UnraisableHookArgs) -> None:
        """Raise again what Python had to drop; installed as `sys.unraisablehook`."""
        if isinstance(dropped.exc_value, Terminated):
            self.deliver_again(dropped.exc_value.number)
        elif dropped.exc_type is KeyboardInterrupt:
            self.deliver_again(signal.SIGINT)
        else:
            sys.__unraisablehook__(dropped)


@contextmanager
def terminable() -> Iterator[None]:
    """Make signals that would end the process at once unwind the stack instead.

    Handlers that other code installed are kept, and so are ignored signals, such as SIGHUP under
    nohup.
    """
    usual: dict[signal.Signals, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGXCPU: signal.SIG_DFL,
    }
    mine = threading.current_thread() is threading.main_thread()
    found = {number: signal.getsignal(number) for number in usual if mine}
    taken = {s: former for s, former in found.items() if former in (usual[s], end_by_signal)}
    if not taken:
        yield
        return
    handler = Handler()
    for number in taken:
        signal.signal(number, handler)
    former, sys.unraisablehook = sys.unraisablehook, handler.swallowed
    try:
        yield
    finally:
        sys.unraisablehook = former
        for number, before in taken.items():
            signal.signal(number, before)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Give Python its handlers of `ENDING` back after a library was loaded that replaces them.

    UCX, which MPI may load, handles SIGHUP by writing its log.
    """
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                handler = signal.getsignal(number)
                if handler is not None:  # None: not installed from Python
                    signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Delay signals during calls of a library that drops exceptions; they are raised afterwards.

    In threads other than the main one, which get no signals, it does nothing.
    """
    handler = _installed()
    if handler is None:
        yield
        return
    handler.enter()
    try:
        yield
    finally:
        handler.leave()


def interrupt() -> None:
    """Raise Terminated in the main thread, where `terminable` is in use; for other threads."""
    if isinstance(signal.getsignal(signal.SIGTERM), Handler):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def raise_waiting() -> None:
    """Raise a waiting signal that arrived in an `uninterruptible` function."""
    handler = _installed()
    if handler is not None:
        handler.raise_waiting()


def _installed() -> Handler | None:
    if threading.current_thread() is not threading.main_thread():
        return None
    found: Any = next((h for h in map(signal.getsignal, ENDING) if isinstance(h, Handler)), None)
    return found
