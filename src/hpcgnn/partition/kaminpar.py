"""Partitions by KaMinPar: one rank writes the graph to a file, a separate process cuts it.

KaMinPar (Gottesbüren et al., ESA 2021; compressed graphs: Salwasser et al., IPDPS 2025) holds
Python's global interpreter lock, so a process beside rank 0 runs it (`kaminpar_process`): rank 0
can still answer the other ranks and signals, all memory is freed afterwards, and if memory runs out
only that process ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.shortage import shortage
from hpcgnn.errors import HpcgnnError, InputError, OutputError, human
from hpcgnn.partition import kaminpar_process
from hpcgnn.partition.edges import most_neighbours
from hpcgnn.partition.options import PartitionOptions
from hpcgnn.partition.parhip import ParHIPFile, ParHIPLayout
from hpcgnn.partition.problem import COMPRESSED, Problem, kaminpar_bytes
from hpcgnn.partition.routing import Array, Slabs
from hpcgnn.system import asked_threads

_CONTEXTS = {"fast": "fast", "default": "default", "strong": "eco"}
_COMPRESSED = {"fast": "terapart", "default": "terapart", "strong": "terapart_eco"}
_ASK_SECONDS = 2.0


def is_there() -> bool:
    """Return whether the package can be found."""
    return importlib.util.find_spec("kaminpar") is not None


def threads(repeatable: bool) -> int:
    """Return the threads that the job gives this rank; 1 for the same parts in every run."""
    mine = len(os.sched_getaffinity(0))
    return 1 if repeatable else min(asked_threads() or mine, mine)


def kaminpar_lacks(comm: Communicator, problem: Problem) -> str:
    """Return what KaMinPar lacks for this graph, its package or memory, or "". Collective."""
    if not comm.broadcast(is_there(), where="find KaMinPar"):
        return "the package kaminpar is not installed (pip install kaminpar)"
    needed = kaminpar_bytes(problem.num_nodes, most_neighbours(comm, problem.edges))
    short = shortage(comm, needed if comm.rank == 0 else 0)
    return f"KaMinPar would need about {short}" if short else ""


def kaminpar_parts(comm: Communicator, problem: Problem) -> Array:
    """Return the part of each row of the slab: int32. Collective; rank 0's machine does the work.

    Raises:
        InputError: the package is missing, or balanced training nodes are requested too.
        OutputError: the temporary file (in TMPDIR) can't be written.
        HpcgnnError: KaMinPar failed, or its process was killed.
    """
    if problem.options.balance_train:
        raise InputError("KaMinPar balances only one weight: leave --train-balance out")
    with agreed(comm, "find KaMinPar"):
        if comm.rank == 0 and not is_there():
            raise InputError(
                "--method kaminpar needs the package kaminpar (pip install kaminpar); the others "
                "are parmetis, streaming, random and block"
            )
    edges, slabs = problem.edges, Slabs(comm, problem.edges.lo, problem.edges.hi, problem.num_nodes)
    part = np.empty(0, np.int32)
    with _scratch(comm) as folder:
        layout = ParHIPLayout.of(comm, problem)
        with agreed(comm, "write the graph for KaMinPar"):
            if folder is not None:
                _check_space(folder, layout.most_bytes)
        count = ParHIPFile(layout, folder).write(comm, problem)
        part = _run(comm, folder, problem, count)
    low, high = (0, problem.num_nodes) if comm.rank == 0 else (problem.num_nodes,) * 2
    whole = Slabs(comm, low, high, problem.num_nodes)
    return whole.lookup(np.arange(slabs.low, edges.hi), part)


@contextmanager
def _scratch(comm: Communicator) -> Iterator[Path | None]:
    """Yield a folder on rank 0 that is always removed afterwards, None elsewhere. Collective."""
    folder: tempfile.TemporaryDirectory[str] | None = None
    with agreed(comm, "make a temporary folder"):
        if comm.rank == 0:
            try:
                folder = tempfile.TemporaryDirectory(prefix="hpcgnn-")
            except OSError as error:
                raise OutputError(
                    f"no temporary folder can be created: {error.strerror}: set TMPDIR",
                    file=os.environ.get("TMPDIR", "/tmp"),
                ) from error
    try:
        yield Path(folder.name) if folder else None
    finally:
        if folder is not None:
            folder.cleanup()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"KaMinPar's file of the graph takes up to {human(needed)}, and {human(free)} "
            "are free: set TMPDIR to a larger folder",
            file=folder.parent,
        )


def _run(comm: Communicator, folder: Path | None, problem: Problem, neighbours: int) -> Array:
    """Return the part of each row of the whole graph on rank 0, nothing elsewhere. Collective.

    Rank 0 reports every few seconds that it is still waiting, so that it isn't taken for lost.
    """
    process: subprocess.Popen[bytes] | None = None
    part, began = np.empty(0, np.int32), time.monotonic()
    try:
        with agreed(comm, "start KaMinPar"):
            if folder is not None:
                process = _start(folder, problem, neighbours)
        while not comm.broadcast(process is None or _ended(process), where="KaMinPar"):
            pass
        with agreed(comm, "KaMinPar"):
            if folder is not None and process is not None:
                part = _result(folder, process, problem)
                problem.notes.append(_told(folder, problem.options, time.monotonic() - began))
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
    return part


def _start(folder: Path, problem: Problem, neighbours: int) -> subprocess.Popen[bytes]:
    options = problem.options
    compress = neighbours >= COMPRESSED
    request: dict[str, Any] = {
        "parts": problem.num_parts,
        "imbalance": options.imbalance - 1,
        "seed": options.seed,
        "context": (_COMPRESSED if compress else _CONTEXTS)[options.quality],
        "compress": compress,
        "threads": threads(options.repeatable),
    }
    (folder / kaminpar_process.REQUEST).write_text(json.dumps(request))
    command = [sys.executable, "-P", "-m", kaminpar_process.__name__, str(folder)]
    with (folder / kaminpar_process.OUTPUT).open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_ASK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _result(folder: Path, process: subprocess.Popen[bytes], problem: Problem) -> Array:
    status = process.returncode
    if status == -signal.SIGKILL:
        raise HpcgnnError(
            "KaMinPar's process was killed, most likely for lack of memory: give rank 0 a machine "
            "with more, or choose --method parmetis on more ranks, or streaming"
        )
    if status:
        said = (folder / kaminpar_process.OUTPUT).read_text(errors="replace").strip().splitlines()
        raise HpcgnnError(f"KaMinPar failed with status {status}: {' '.join(said[-1:])[:200]}")
    part = np.load(folder / kaminpar_process.RESULT, allow_pickle=False)
    if part.shape != (problem.num_nodes,) or not 0 <= part.min() <= part.max() < problem.num_parts:
        raise HpcgnnError(f"KaMinPar returned parts outside 0 .. {problem.num_parts - 1}")
    return part.astype(np.int32, copy=False)


def _told(folder: Path, options: PartitionOptions, seconds: float) -> str:
    count = threads(options.repeatable)
    also = (
        ""
        if count == 1
        else "; parts differ from run to run (--repeatable: one thread, the same parts)"
    )
    peak = int((folder / kaminpar_process.PEAK).read_text())
    return (
        f"KaMinPar: quality {options.quality}, {count} thread{'s' * (count > 1)}{also}; "
        f"{seconds:.1f} s, {peak / 2**20:,.0f} MiB in its own process"
    )
