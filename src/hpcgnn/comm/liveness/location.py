"""The location of a rank in its program, which it reports when another rank asks."""

from __future__ import annotations

import gc
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from hpcgnn.comm.liveness.termination import interrupt
from hpcgnn.errors import Agreed

_PACKAGE = str(Path(__file__).parents[1])
_TEXT = 160
_FRAMES = 12


@dataclass(frozen=True)
class Report:
    """The answer of a rank to a question; every text is bounded.

    `since` and `waited` are seconds; `cpu` is the processor time of the process so
    far, without what answers cost.
    """

    place: str
    since: float
    waiting: str = ""
    waited: float = 0.0
    cpu: float = 0.0
    failing: str = ""
    stack: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, fields: Any) -> Report:
        """Return the report that another process sent; ValueError if it isn't one."""
        if not isinstance(fields, dict):
            raise ValueError("not a report")
        return cls(
            place=_printable(fields["place"]),
            since=float(fields["since"]),
            waiting=_printable(fields["waiting"]),
            waited=float(fields["waited"]),
            cpu=float(fields["cpu"]),
            failing=_printable(fields["failing"]),
            stack=[_printable(line) for line in list(fields["stack"])[:_FRAMES]],
        )


def _printable(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text)[:_TEXT])


class Visit:
    """The result of `Location.at`: as a context, it restores the previous place at its end.

    After an error the place stays until another one is set, so that it can be reported.
    """

    __slots__ = ("_base", "_before", "_owner")

    def __init__(self, owner: Location, base: str, before: tuple[str, float]) -> None:
        self._owner, self._base, self._before = owner, base, before

    def __enter__(self) -> None:
        self._owner.base = self._owner.place[0]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner.base = self._base
        if error is None:
            self._owner.place = self._before


class Location:
    """The location of this rank's working thread, updated as the program runs.

    Attributes:
        surprise: the last error that `Communicator.agree` raised here and that is not an
            HpcgnnError, with what it found out; an HpcgnnError carries that itself.
        leaving: another rank ends the job, as soon as this one has removed its partial output.
    """

    def __init__(self) -> None:
        self.base = ""
        self.place = ("start", time.monotonic())
        self.waiting: tuple[str, float] | None = None
        self.failing = ""
        self.surprise: tuple[BaseException, Agreed] | None = None
        self.leaving = False
        self._thread = threading.get_ident()

    def at(self, text: str) -> Visit:
        """Set this rank's location; inside `with` blocks the texts are joined."""
        visit = Visit(self, self.base, self.place)
        self.place = (f"{self.base}, {text}" if self.base else text, time.monotonic())
        return visit

    def set_waiting(self, where: str) -> None:
        """Record that the calling thread waits for other ranks from now on."""
        self._thread = threading.get_ident()
        self.waiting = (where, time.monotonic())

    def leave(self) -> None:
        """Make the main thread leave its with-blocks; called from the answering thread."""
        if not self.leaving:
            self.leaving = True
            if not self.failing:
                interrupt()

    def report(self) -> Report:
        """Return the current report; called from the answering thread."""
        now = time.monotonic()
        waiting = self.waiting or ("", now)
        return Report(
            place=self.place[0][:_TEXT],
            since=round(now - self.place[1], 1),
            waiting=waiting[0][:_TEXT],
            waited=round(now - waiting[1], 1),
            # Not the answering thread's: many questions would look like work.
            cpu=time.process_time() - time.thread_time(),
            failing=self.failing[:_TEXT],
            stack=stack_of(self._thread),
        )


def stack_of(thread: int | None = None) -> list[str]:
    """Return the innermost Python frames of a thread as "file:line in function", innermost first.

    Frames of hpcgnn.comm, which are polling loops, are left out.
    """
    frame = _frames().get(threading.get_ident() if thread is None else thread)
    lines: list[str] = []
    while frame is not None and len(lines) < _FRAMES:
        path = frame.f_code.co_filename
        if not path.startswith(f"{_PACKAGE}/comm/"):
            short = path.removeprefix(f"{_PACKAGE}/") if path.startswith(_PACKAGE) else path[-60:]
            lines.append(f"{short}:{frame.f_lineno} in {frame.f_code.co_name}"[:_TEXT])
        frame = frame.f_back
    return lines


def _frames() -> dict[int, FrameType]:
    # CPython before 3.13 can deadlock when it collects garbage in this call (gh-106883).
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if collects:
            gc.enable()
