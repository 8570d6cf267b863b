"""Standard output and error of a command, which may be closed, full, or lack characters."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

from hpcgnn.errors import OutputError, warning


def set_up(*, log: bool) -> None:
    """Make both streams accept any output.

    Closed descriptors become /dev/null, since the next opened file would get the output otherwise.
    Output that can't be written is lost on standard error; on standard output it is an OutputError,
    or lost with one warning if it is a `log`. Characters that the encoding lacks are escaped.
    Streams that other code put in place of Python's own are kept.
    """
    for number in range(3):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _opened(sys.stderr, _Stream(2, lossy=True))
    if sys.stdout is sys.__stdout__:
        sys.stdout = _opened(sys.stdout, _Stream(1, lossy=log))


def _opened(former: TextIO | None, stream: _Stream) -> TextIO:
    unbuffered = bool(getattr(former, "write_through", False))
    return io.TextIOWrapper(
        stream if unbuffered else io.BufferedWriter(stream),
        encoding=getattr(former, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=stream.isatty() or stream.fileno() == 2,
        write_through=unbuffered,
    )


class _Stream(io.RawIOBase):
    """A writable descriptor; `lossy`: output that it doesn't accept is dropped."""

    def __init__(self, number: int, *, lossy: bool) -> None:
        super().__init__()
        self._number, self._lossy = number, lossy
        self._broken = self._warned = False
        self.name = f"<{'stderr' if number == 2 else 'stdout'}>"
        self.mode = "w"

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and not self._broken:
            try:
                done += os.write(self._number, view[done:])
            except BlockingIOError:
                _wait_until_ready(self._number)
            except OSError as error:
                self._failed(error)
                break
        return len(view)

    def _failed(self, error: OSError) -> None:
        if self._number == 2:
            return
        if self._lossy and not isinstance(error, BrokenPipeError):
            if not self._warned:
                self._warned = True
                text = f"standard output can't be written: {error.strerror}; its lines are lost"
                warning(text)
            return
        self._broken = True  # Python flushes again at exit
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputError(f"standard output can't be written: {error.strerror}") from error


def _wait_until_ready(number: int) -> None:
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    poll.poll(1000)
