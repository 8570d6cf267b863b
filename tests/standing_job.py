"""A job of several ranks that runs one command after the other.

Starting Python and PyTorch on each rank takes longer than most commands of a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

POLL_SECONDS = 0.02
OUTPUTS = ("out", "err")


class StandingJob:
    """A job whose `ranks` ranks `serve` commands below `folder`, started by the first command.

    `start(place, pid)` starts them: `mpiexec` with a program that calls `serve(run, place, pid)`.
    A dead job is started again by the next command. Each rank reads its orders from a named
    pipe, since polling for files would slow down the tests that run at the same time.
    """

    def __init__(
        self, ranks: int, folder: Path, start: Callable[[str, str], subprocess.Popen[bytes]]
    ) -> None:
        self.ranks = ranks
        self._folder, self._start = folder, start
        self._job: subprocess.Popen[bytes] | None = None
        self._lives = self._number = 0
        self._orders: list[TextIO] = []

    def run(self, *command: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run one command on all ranks, in this process's folder.

        Return the largest status, or the job's if it died; rank 0's output; all errors.
        """
        if self._job is None or self._job.poll() is not None:
            self._lives, self._number = self._lives + 1, 0
            self._place.mkdir()
            self._close()
            self._orders = [_pipe(_orders(self._place, rank)) for rank in range(self.ranks)]
            self._job = self._start(str(self._place), str(os.getpid()))
        self._number += 1
        self._send({"folder": str(Path.cwd()), "command": list(map(str, command))})
        statuses = self._paths("status")
        end = time.monotonic() + timeout
        while not (over := all(map(Path.exists, statuses))) and self._job.poll() is None:
            if time.monotonic() > end:
                self.stop()
            time.sleep(POLL_SECONDS)
        out, err = ([p.read_text() for p in self._paths(name) if p.exists()] for name in OUTPUTS)
        if over:
            status = max(json.loads(path.read_text()) for path in statuses)
        else:
            status = self._job.wait()
        return subprocess.CompletedProcess(command, status, "".join(out[:1]), "".join(err))

    @property
    def _place(self) -> Path:
        return self._folder / f"job{self._lives}"

    def _paths(self, kind: str) -> list[Path]:
        return [self._place / f"{self._number}.{rank}.{kind}" for rank in range(self.ranks)]

    def stop(self) -> None:
        if self._job is None:
            return
        self._send(None)
        try:
            self._job.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._job.terminate()  # and the ranks with it
            self._job.wait()
        self._close()

    def _send(self, order: object) -> None:
        for orders in self._orders:
            print(json.dumps(order), file=orders, flush=True)

    def _close(self) -> None:
        for orders in self._orders:
            orders.close()
        self._orders = []


def serve(run: Callable[[list[str]], int], folder: str, pid: str) -> int:
    """Call `run(command)` for each order from process `pid`, until told to end or it is gone.

    `python -m tests.standing_job FOLDER PID`: with commands of hpcgnn.
    """
    from hpcgnn.comm.launcher import launched

    rank, _ = launched()
    if not Path(f"/proc/{pid}").exists():  # no process opens the other end
        return 1
    with _orders(Path(folder), rank).open() as orders:
        for number, line in enumerate(orders, start=1):
            order = json.loads(line)
            if order is None:
                return 0
            os.chdir(order["folder"])
            out, err, done = (Path(folder, f"{number}.{rank}.{n}") for n in (*OUTPUTS, "status"))
            _write(done, _status(run, order["command"], out, err))
    return 1


def _status(run: Callable[[list[str]], int], command: list[str], out: Path, err: Path) -> int:
    with (
        out.open("w", buffering=1) as stdout,
        err.open("w", buffering=1) as stderr,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            return run(command)
        except Exception:
            traceback.print_exc()
            return 1


def _orders(place: Path, rank: int) -> Path:
    return place / f"{rank}.orders"


def _pipe(path: Path) -> TextIO:
    """Open a new named pipe for writing, and for reading too, since it has no reader yet."""
    os.mkfifo(path)
    return os.fdopen(os.open(path, os.O_RDWR), "w")


def _write(path: Path, value: object) -> None:
    made = path.with_name(f".{path.name}")
    made.write_text(json.dumps(value))
    made.replace(path)


if __name__ == "__main__":
    from hpcgnn.cli.main import main

    sys.exit(serve(main, *sys.argv[1:]))
