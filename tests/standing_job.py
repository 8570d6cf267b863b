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

POLL_SECONDS = 0.02
OUTPUTS = ("out", "err")


class StandingJob:
    """`ranks` ranks that `serve` below `folder`, from the first command on.

    `start(place, pid)` starts them: `mpiexec` with a program that calls `serve(run, place, pid)`.
    One that has died is started again by the next command.
    """

    def __init__(
        self, ranks: int, folder: Path, start: Callable[[str, str], subprocess.Popen[bytes]]
    ) -> None:
        self.ranks = ranks
        self._folder, self._start = folder, start
        self._job: subprocess.Popen[bytes] | None = None
        self._lives = self._number = 0

    def run(self, *command: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """One command on all ranks, in this process's folder.

        The largest status, or the job's where it died of it; rank 0's output; all errors.
        """
        if self._job is None or self._job.poll() is not None:
            self._lives, self._number = self._lives + 1, 0
            self._place.mkdir()
            self._job = self._start(str(self._place), str(os.getpid()))
        self._number += 1
        order = {"folder": str(Path.cwd()), "command": list(map(str, command))}
        _write(self._place / f"{self._number}.order", order)
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
        _write(self._place / f"{self._number + 1}.order", None)
        try:
            self._job.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._job.terminate()  # and with it the ranks
            self._job.wait()


def serve(run: Callable[[list[str]], int], folder: str, pid: str) -> int:
    """`run(command)` for each order in `folder`, until one says to end or process `pid` is gone.

    `python -m tests.standing_job FOLDER PID`: with commands of hpcgnn.
    """
    from hpcgnn.comm.launcher import launched

    number, (rank, _) = 0, launched()
    while Path(f"/proc/{pid}").exists():
        path = Path(folder, f"{number + 1}.order")
        if not path.exists():
            time.sleep(POLL_SECONDS)
            continue
        number += 1
        order = json.loads(path.read_text())
        if order is None:
            return 0
        os.chdir(order["folder"])
        status = 1
        out, err = (Path(folder, f"{number}.{rank}.{name}") for name in OUTPUTS)
        with (
            out.open("w", buffering=1) as stdout,
            err.open("w", buffering=1) as stderr,
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            try:
                status = run(order["command"])
            except Exception:
                traceback.print_exc()
        _write(Path(folder, f"{number}.{rank}.status"), status)
    return 1


def _write(path: Path, value: object) -> None:
    made = path.with_name(f".{path.name}")
    made.write_text(json.dumps(value))
    made.replace(path)


if __name__ == "__main__":
    from hpcgnn.cli.main import main

    sys.exit(serve(main, *sys.argv[1:]))
