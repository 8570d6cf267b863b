"""Programs started for a measurement: watched, and ended when they exceed their limits."""

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
from hpcgnn.errors import InputError, human

_LOOK = 0.1  # seconds between two checks of a job's memory
_GRACE = 2.0  # seconds for a launcher to end its ranks
_LONGEST = 160  # characters of a program's error message
# Variables of launchers; a job that a rank starts must not take itself for a rank.
_OF_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "PRTE_", "HYDI_", "HYDRA_")


@dataclass(frozen=True)
class Limits:
    """Limits of a job: seconds, and bytes of all its processes together."""

    seconds: float
    num_bytes: int


@dataclass(frozen=True)
class Ended:
    """The end of a job: its output, and `problem` in a few words, None if it succeeded."""

    output: str
    problem: str | None


@dataclass(frozen=True)
class Layout:
    """A number of ranks and the number of threads of each."""

    ranks: int
    threads: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Return the layout written like `2x1`.

        Raises:
            InputError: the text has another form.
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
    """Return a text like `1 rank` or `2 ranks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def launcher() -> list[str]:
    """Return the command that starts ranks, up to their number.

    Raises:
        InputError: mpiexec isn't found.
    """
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else system.find_program("mpiexec")
    if found is None:
        raise InputError("no mpiexec found to start the ranks with: pip install mpich")
    return [found, "-n"]


def ours(arguments: Sequence[object], ranks: Layout, limits: Limits) -> Ended:
    """Run `hpcgnn` with these arguments on this layout."""
    start = [*launcher(), str(ranks.ranks)] if ranks.ranks > 1 else []
    command = [*start, sys.executable, "-P", "-m", "hpcgnn", *map(str, arguments)]
    return run(command, environment(ranks.threads), limits)


def environment(threads: int, base: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a job that isn't a rank of ours, with `threads` per process."""
    inherited = os.environ if base is None else base
    kept = {name: v for name, v in inherited.items() if not name.startswith(_OF_LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def run(command: Sequence[str], env: dict[str, str], limits: Limits) -> Ended:
    """Run a program to its end or its limits; never raises for what happens to it."""
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
    """Return the JSON object on a program's last line, or `{"problem": ...}` if there is none."""
    if ended.problem is not None:
        return {"problem": ended.problem}
    value: Any = None
    with suppress(ValueError, RecursionError, IndexError):
        value = json.loads(ended.output.strip().splitlines()[-1])
    return (
        value
        if isinstance(value, dict)
        else {"problem": "its answer is not a JSON object of results"}
    )


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> str | None:
    """Wait for the end; return None, or a message about the limit that was exceeded."""
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
            return f"out of memory (above {human(limits.num_bytes)})"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all processes of the job: terminate its launcher, then kill the rest."""
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
    """Return the processes of a job with its root, and the birth of each, as ids are reused."""
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
    if lines and not lines[0].strip("-="):  # Open MPI frames its messages by lines of dashes
        errors = lines[1:2]
    said = (errors or lines or [""])[-1].removeprefix("hpcgnn: error: ")[:_LONGEST]
    if status < 0:
        name = signal.Signals(-status).name
        return "killed, probably for lack of memory" if name == "SIGKILL" else f"ended by {name}"
    return said or f"ended with status {status}"
