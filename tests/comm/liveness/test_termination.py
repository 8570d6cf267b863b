"""Signals that arrive while a library holds the processor."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hpcgnn.comm.liveness.failure import Failure
from hpcgnn.comm.liveness.termination import (
    Terminated,
    held,
    kept_handlers,
    raise_waiting,
    terminable,
    uninterruptible,
)

SIGNALS = [
    (signal.SIGTERM, Terminated),
    (signal.SIGINT, KeyboardInterrupt),
    (signal.SIGHUP, Terminated),
    (signal.SIGXCPU, Terminated),
]


@pytest.fixture(autouse=True)
def _handled_as_usual():
    """Restore default handling, whatever the tests were started under: nohup ignores SIGHUP."""
    usual = (signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    former = [
        signal.signal(number, handler) for (number, _), handler in zip(SIGNALS, usual, strict=True)
    ]
    yield
    for (number, _), handler in zip(SIGNALS, former, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_signals_raise_at_once_outside_library_calls(number, error):
    with terminable(), pytest.raises(error) as raised:
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert Failure.of(raised.value).status == 128 + number


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_a_copy_of_a_signal_does_not_interrupt_what_cleans_up(number, error):
    cleaned = []
    with terminable(), pytest.raises(error):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            cleaned.append(number)
    assert cleaned == [number]


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_a_held_signal_is_raised_after_the_library_call(number, error):
    done = []
    with terminable(), pytest.raises(error):
        with held():
            with held():
                os.kill(os.getpid(), number)
                done.append("inner")
            done.append("outer")
        done.append("after")
    assert done == ["inner", "outer"]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_exceptions_that_python_drops_are_raised_again(number, error, slow, monkeypatch):
    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0)

    start = threading.Thread.start

    def start_slowly(thread):
        """Return when the thread has done some of its work, as on a busy machine."""
        start(thread)
        time.sleep(0.2)

    if slow:
        monkeypatch.setattr(threading.Thread, "start", start_slowly)
    with terminable(), pytest.raises(error):
        Dropping()
        time.sleep(5)


def test_a_signal_in_an_uninterruptible_callback_is_raised_later():
    @uninterruptible
    def callback():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    with terminable(), pytest.raises(Terminated):
        callback()
        raise_waiting()


def test_signal_handlers_of_the_program_are_kept():
    heard = []
    former = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with terminable(), held():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_under_nohup_a_closed_terminal_is_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_loading_a_library_keeps_our_signal_handlers(number, error):
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    with terminable(), pytest.raises(error):
        with kept_handlers():
            library.signal(number, int(signal.SIG_IGN))
        os.kill(os.getpid(), number)
        time.sleep(5)


STARTED = """
import os, signal, sys, time
from hpcgnn.comm import world
from hpcgnn.comm.liveness.termination import terminable

def main(comm):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(5)
    return 0

signal.signal(signal.SIGHUP, signal.SIG_DFL)
with terminable():
    sys.exit(world.run(main))
"""


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_signals_end_programs_that_started_mpi(number, error):
    command = [sys.executable, "-c", STARTED, str(int(number))]
    status = subprocess.run(command, capture_output=True, timeout=60).returncode
    assert status == 128 + number
