"""Stopping before the end: signals, preemption, and the time limit of the batch job."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from types import FrameType
from typing import Any

from hpcgnn.comm.launcher import has_launcher, launched
from hpcgnn.system import find_program

STOP_SIGNALS = (
    signal.SIGUSR1,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGXCPU,  # the soft limit of `ulimit -t`
)
_OFTEN_IGNORED = (signal.SIGINT, signal.SIGHUP)  # in the background of a script, under nohup
_ONE_PRESS = 1.0  # seconds: a launcher hands on what the terminal has sent already


_WORDS = {signal.SIGINT.value: "Ctrl-C"}


class StopRequest:
    """Records that this rank was asked to stop; the training loop makes all ranks agree.

    A second Ctrl-C ends the program at once, as it would without a handler. Signals are handled in
    the main thread only; in another thread, none are.

    A context manager, which restores the former signal handlers at the end.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._pressed: float | None = None
        self._former: dict[int, Any] = {}
        self._came: tuple[int, int] | None = None  # a pipe that gets a byte per signal

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in STOP_SIGNALS:
            if number not in _OFTEN_IGNORED or signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._note)
        self._count()
        return self

    def _count(self) -> None:
        """Let Python write a byte per signal to a pipe.

        If several signals arrive during one call of a library, such as while PyTorch is loading,
        `_note` is called only once.
        """
        try:
            read, write = os.pipe()
        except OSError:  # too many open files, which the next open reports
            return
        for number in (read, write):
            os.set_blocking(number, False)
        former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if former == -1:
            self._came = read, write
            return
        signal.set_wakeup_fd(former)  # it is an event loop's
        os.close(read)
        os.close(write)

    def __exit__(self, *error: object) -> None:
        if self._came is not None:
            signal.set_wakeup_fd(-1)
            for number in self._came:
                os.close(number)
            self._came = None
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            same = _ONE_PRESS if has_launcher() else 0.0
            again = self._pressed is not None and now - self._pressed >= same
            if self._presses() > (2 if has_launcher() else 1) or again:
                signal.signal(number, self._former[number])
                os.kill(os.getpid(), number)
                return
            if self._pressed is None and launched()[0] == 0:
                _answer_at_once()
            self._pressed = self._pressed or now
        self.reason = self.reason or _WORDS.get(number, signal.Signals(number).name)

    def _presses(self) -> int:
        """Return how many Ctrl-C signals have arrived since the last call."""
        if self._came is None:
            return 1
        try:
            return os.read(self._came[0], 1 << 16).count(signal.SIGINT)
        except BlockingIOError:
            return 0


def _answer_at_once() -> None:
    """Print now, as an epoch may take minutes; os.write is safe while another print is running."""
    with suppress(OSError):
        os.write(
            2, b"\nhpcgnn: Ctrl-C: stops after this epoch, with a checkpoint; once more: now\n"
        )


class TimeLimit:
    """Seconds left until Slurm ends the batch job; infinite outside a job.

    Slurm is asked again every `refresh` seconds, since limits can be changed.
    """

    def __init__(
        self, ask: Callable[[], float | None] | None = None, refresh: float = 300.0
    ) -> None:
        self._ask = ask or slurm_end_time
        self._refresh = refresh
        self._asked = -float("inf")
        self._end: float | None = None

    def seconds_left(self) -> float:
        now = time.monotonic()
        if now - self._asked > self._refresh:
            end = self._ask()
            # From here on by a monotonic clock.
            self._asked, self._end = now, None if end is None else now + end - time.time()
        return float("inf") if self._end is None else self._end - now


def slurm_end_time() -> float | None:
    """Return when the time limit ends the job, in seconds since 1970; None without limit or job."""
    given = os.environ.get("SLURM_JOB_END_TIME", "")
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    job, array, task = (os.environ.get(name, "") for name in names)
    if not _is_number(job):
        return None
    if _is_number(array) and _is_number(task):
        job = f"{array}_{task}"  # the id of one task is that of the whole array
    program = find_program("squeue") or "/usr/bin/squeue"
    command = [program, "--noheader", "--jobs", job, "--format", "%e"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return datetime.fromisoformat(answer.stdout.split()[0]).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return float(given) if _is_number(given) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
