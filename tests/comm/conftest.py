"""Starts tests/comm/faulty.py on several ranks and sees that nothing of it is left."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpcgnn.comm.communicator import Communicator


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("hpcgnn: error:")]


@pytest.fixture
def comm() -> Iterator[Communicator]:
    """A new one, which the test may spoil."""
    communicator = Communicator(timeout=120)
    yield communicator
    communicator.close()


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "PMIX_", "HPCGNN_"))}
    return kept | {"OMP_NUM_THREADS": "1"}


def _command(ranks: int, arguments: Sequence[str]) -> list[str]:
    if not ranks:
        return [sys.executable, *arguments]
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("no mpiexec found")
    return [mpiexec, "-n", str(ranks), sys.executable, *arguments]


@pytest.fixture
def python() -> Callable[..., Outcome]:
    """`python(2, "-c", "print(1)")` on that many ranks; 0 means without mpiexec."""

    def run(
        ranks: int,
        *arguments: str,
        env: dict[str, str] | None = None,
        stdout: int = subprocess.PIPE,
    ) -> Outcome:
        start = time.monotonic()
        ended = subprocess.run(
            _command(ranks, arguments),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            env=_environment() | {"HPCGNN_TIMEOUT": "60"} | (env or {}),
        )
        seconds = time.monotonic() - start
        return Outcome(ended.returncode, ended.stdout or "", ended.stderr, seconds)

    return run


@pytest.fixture
def faulty(python: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """`faulty("one_raises", ranks=3)`; every process it starts must be gone afterwards."""

    def run(fault: str, ranks: int = 3, **options: Any) -> Outcome:
        outcome = python(ranks, str(Path(__file__).with_name("faulty.py")), fault, **options)
        pids = [int(pid) for pid in re.findall(r"^pid (\d+)$", outcome.err, re.MULTILINE)]
        assert len(pids) == max(ranks, 1)
        left = _left_after(pids, 10.0)
        assert not left, f"processes {left} are left"
        return outcome

    return run


def _left_after(pids: list[int], seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    while True:
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)
