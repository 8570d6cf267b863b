"""Programs started for a measurement: watched, ended when they take too much, never trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgnn import system
from hpcgnn.errors import InputError

_LOOK = 0.1  # seconds between two looks at a job's memory
_GRACE = 2.0  # seconds that a launcher has to end its ranks
_LONGEST = 160  # characters of a program's last words
# What a launcher tells its ranks; a job that one of them starts must not take itself for a rank.
_OF_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "PRTE_", "HYDI_", "HYDRA_")


@dataclass(frozen=True)
class Limits:
    """What a job may take: seconds, and bytes of all its processes together."""

    seconds: float
    num_bytes: int


@dataclass(frozen=True)
class Ended:
    """How a job ended: `problem` in a few words, None where it did what it should."""

    output: str
    problem: str | None


@dataclass(frozen=True)
class Layout:
    """So many ranks with so many threads each."""

    ranks: int
    threads: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        """From `2x1`.

        Raises:
            InputError: it is something else.
        """
        ranks, cross, threads = text.partition("x")
        numbers = [int(n) if n.isascii() and n.isdigit() else 0 for n in (ranks, threads or "1")]
        if min(numbers) < 1 or max(numbers) > 1 << 16 or (cross and not threads):
            raise InputError("ranks are given as RANKSxTHREADS, such as 2x1", value=text)
        return cls(*numbers)

    @property
    def processors(self) -> int:
        return self.ranks * self.threads

    def __str__(self) -> str:
        return f"{count(self.ranks, 'rank')} x {count(self.threads, 'thread')}"


def count(number: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def launcher() -> list[str]:
    """What starts ranks here, up to their number.

    Raises:
        InputError: there is none.
    """
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else system.find_program("mpiexec")
    if found is None:
        raise InputError("no mpiexec found, which the ranks are started with: pip install mpich")
    return [found, "-n"]


def ours(arguments: Sequence[object], ranks: Layout, limits: Limits) -> Ended:
    """`hpcgnn` with these arguments on so many ranks."""
    start = [*launcher(), str(ranks.ranks)] if ranks.ranks > 1 else []
    command = [*start, sys.executable, "-P", "-m", "hpcgnn", *map(str, arguments)]
    return run(command, environment(ranks.threads), limits)


def environment(threads: int, base: dict[str, str] | None = None) -> dict[str, str]:
    """Of a job that isn't a rank of ours, with so many threads for each process."""
    inherited = os.environ if base is None else base
    kept = {name: v for name, v in inherited.items() if not name.startswith(_OF_LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def run(command: Sequence[str], env: dict[str, str], limits: Limits) -> Ended:
    """Run a program to its end, or to its limits; whatever happens to it, this returns."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            return Ended("", f"can't be started: {error.strerror}")
        try:
            problem = _watch(process, limits)
        finally:
            _end(process)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if problem is None and process.returncode:
        problem = _last_words(process.returncode, texts[1] or texts[0])
    return Ended(texts[0], problem)


def answer(ended: Ended) -> dict[str, Any]:
    """The JSON object on a program's last line, `{"problem": ...}` where there is none."""
    if ended.problem is not None:
        return {"problem": ended.problem}
    value: Any = None
    with suppress(ValueError, RecursionError, IndexError):
        value = json.loads(ended.output.strip().splitlines()[-1])
    return value if isinstance(value, dict) else {"problem": "its answer is none"}


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> str | None:
    """Wait for the end: None, or the limit that came first."""
    end = time.monotonic() + limits.seconds
    while True:
        try:
            process.wait(_LOOK)
            return None
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() > end:
            return f"not done after {limits.seconds:g} s"
        if sum(map(_resident, _descendants(process.pid))) > limits.num_bytes:
            return f"out of memory (above {limits.num_bytes / 1e9:.1f} GB)"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the job stays: its launcher is asked first, then all of it is killed."""
    if process.poll() is not None:
        return
    found = _descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    if process.poll() is None:
        process.kill()
        process.wait()
    for pid, born in found.items():
        state = system.ProcessState.of(pid)
        if state is not None and state.birth == born:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> dict[int, str]:
    """The processes of a job, its root included, each with its birth: ids are used again."""
    everyone = system.processes()
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        if pid in everyone:
            found[pid] = everyone[pid].birth
            waiting += [child for child, state in everyone.items() if state.parent == pid]
    return found


def _resident(pid: int) -> int:
    return system.resident_memory_of(pid) or 0


def _last_words(status: int, text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    if lines and not lines[0].strip("-="):  # Open MPI's notices stand between rules
        errors = lines[1:2]
    said = (errors or lines or [""])[-1].removeprefix("hpcgnn: error: ")[:_LONGEST]
    if status < 0:
        name = signal.Signals(-status).name
        return "killed, as for lack of memory" if name == "SIGKILL" else f"ended by {name}"
    return said or f"ended with status {status}"
