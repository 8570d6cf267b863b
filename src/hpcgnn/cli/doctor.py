"""`hpcgnn doctor`: check this installation, one line per part.

    hpcgnn doctor
    mpiexec -n 4 hpcgnn doctor        also the ranks, a sum over them and a ring

Exit status 1 when something needed is missing or broken on any rank.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpcgnn.comm.liveness import shared_memory
from hpcgnn.errors import CommunicationError, HpcgnnError, human, say
from hpcgnn.system import find_program

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpcgnn.comm.communicator import Communicator

PARALLEL = None  # with MPI if it starts; if it doesn't, that is one of the findings

_NEEDED = ("numpy", "scipy", "torch", "h5py", "mpi4py", "pyarrow")
_OPTIONAL = {  # and their uses
    "kaminpar": "partition",
    "matplotlib": "report's page",
    "cupy": "GPUs",
    "ogb": "convert",
    "safetensors": "export",
    "tensorboard": "train --log",
    "shtab": "completion",
}
_PYTHON = (3, 11)
_RING_BYTES = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One line: `state` is "ok", "note" (works, but worth knowing) or "bad"."""

    state: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.subject:<10} {self.text}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", default=".", help="a folder that jobs write to (default: the current one)"
    )


def run(args: argparse.Namespace, comm: Communicator | None) -> int:
    folder = Path(args.folder)
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("shm", _shm),
        ("mpi", _mpi),
        ("hdf5", _hdf5),
        ("kernels", _kernels),
        ("parmetis", lambda: _parmetis(comm)),
        ("gpu", _gpu),
        ("disk", lambda: _disk(folder)),
        ("limits", _limits),
    ]
    findings = [f for subject, check in checks for f in _guarded(subject, check)]
    if comm is not None:
        findings += _guarded("ranks", lambda: _ranks(comm))
    return _print(findings, comm)


def _guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)
    except CommunicationError:
        raise
    except HpcgnnError as error:
        found.append(Finding("bad", subject, str(error)))
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(Finding("bad", subject, text))
    return found


def _print(findings: list[Finding], comm: Communicator | None) -> int:
    """Print rank 0's findings and worse ones of other ranks; return the status for all ranks."""
    everyone = [(0, socket.gethostname(), findings)]
    if comm is not None:
        everyone = comm.allgather((comm.rank, socket.gethostname(), findings), "doctor")
    bad = any(f.state == "bad" for _, _, found in everyone for f in found)
    if comm is None or comm.rank == 0:
        lines = [str(finding) for finding in everyone[0][2]]
        for rank, host, found in everyone[1:]:
            new = [f for f in found if f.state != "ok" and f not in everyone[0][2]]
            lines += [f"{finding} (rank {rank}, {host})" for finding in new]
        lines.append("something is missing: see the lines marked bad" if bad else "all is well")
        say(*lines)
    return int(bad)


def _python() -> Iterator[Finding]:
    from hpcgnn.version import __version__

    yield Finding("ok", "hpcgnn", f"{__version__} in {Path(__file__).parents[1]}")
    old = sys.version_info < _PYTHON
    wanted = f": hpcgnn needs {'.'.join(map(str, _PYTHON))} or newer" if old else ""
    text = f"{platform.python_version()} in {sys.prefix}{wanted}"
    yield Finding("bad" if old else "ok", "python", text)
    for name in _NEEDED:
        try:
            importlib.import_module(name)
            yield Finding("ok", name, importlib.metadata.version(name))
        except Exception as error:
            yield Finding("bad", name, f"can't be imported ({error}): pip install {name}")
    missing = [
        f"{name} ({use})"
        for name, use in _OPTIONAL.items()
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        yield Finding("note", "optional", f"not installed: {', '.join(missing)}")


def _shm() -> Iterator[Finding]:
    ranks = max(shared_memory.local_place()[1], len(os.sched_getaffinity(0)))
    space = shared_memory.Space.here()
    if space is None:
        yield Finding(
            "note", "shm", f"{shared_memory.FOLDER} does not exist: MPI has to work without it"
        )
    elif problem := space.problem(ranks):
        yield Finding("bad" if space.hopeless(ranks) else "note", "shm", problem)
    else:
        yield Finding("ok", "shm", f"{shared_memory.FOLDER}: {space.free / 2**20:,.0f} MiB free")


def _mpi() -> Iterator[Finding]:
    from hpcgnn.comm.mpi_library import MPI
    from hpcgnn.comm.single import NO_LIBRARY

    if MPI.Get_library_version() == NO_LIBRARY:
        yield Finding("bad", "mpi", "no MPI, so one process at a time: pip install mpich")
        return
    name, version = MPI.get_vendor()
    level = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }[MPI.Query_thread()]
    number = ".".join(map(str, version))
    yield Finding("ok", "mpi", f"{name} {number}, threads {level}")
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else find_program("mpiexec") or find_program("mpirun")
    if mpiexec is None:
        state = "note" if find_program("srun") else "bad"
        yield Finding(state, "mpiexec", "not found: start jobs with srun")
        return
    said = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=20)
    other = _vendor_of(said.stdout + said.stderr)
    if other is None or other.lower() in name.lower():
        yield Finding("ok", "mpiexec", mpiexec)
    else:
        text = f"{mpiexec} is {other}'s, but mpi4py uses {name}: jobs must use {name}'s mpiexec"
        yield Finding("bad", "mpiexec", text)


def _vendor_of(text: str) -> str | None:
    """Return the MPI library that an mpiexec with this version text belongs to."""
    if "HYDRA" in text or "MPICH" in text:
        return "MPICH"
    return "Open MPI" if "Open MPI" in text or "prte" in text else None


def _hdf5() -> Iterator[Finding]:
    import h5py

    parallel = h5py.get_config().mpi
    kind = "parallel: ranks write one file together" if parallel else "serial: ranks take turns"
    file = io.BytesIO()  # disks are tested below, and HDF5 ends the process if one is full
    values = np.arange(10_000)
    with h5py.File(file, "w", libver="latest") as h5:
        h5.create_dataset("x", data=values, chunks=(1_000,), compression="gzip", fletcher32=True)
    with h5py.File(file, "r") as h5:
        same = np.array_equal(h5["x"][:], values)
    yield Finding("ok" if same else "bad", "hdf5", f"{h5py.version.hdf5_version}, {kind}")


def _kernels() -> Iterator[Finding]:
    import torch

    from hpcgnn import kernels
    from hpcgnn.kernels.block import Block
    from hpcgnn.kernels.cpu import backend

    isa = backend.instruction_set()
    block = Block(
        peer=0,
        rows=None,
        begin=torch.tensor([0, 2]),
        end=torch.tensor([2, 3]),
        columns=torch.tensor([0, 1, 1], dtype=torch.int32),
        num_columns=2,
    )
    out_NF = torch.zeros(2, 5)
    kernels.spmm(block, torch.arange(10.0).reshape(2, 5), out_NF)
    right = out_NF.tolist() == [[5.0, 7.0, 9.0, 11.0, 13.0], [5.0, 6.0, 7.0, 8.0, 9.0]]
    text = f"{isa}, {torch.get_num_threads()} threads"
    yield Finding("ok" if right else "bad", "kernels", text if right else f"{text}: wrong result")


def _parmetis(comm: Communicator | None) -> Iterator[Finding]:
    if comm is None:
        yield Finding("note", "parmetis", "not checked: it needs MPI")
        return
    from hpcgnn.partition.pyparmetis import builds

    yield Finding("ok", "parmetis", str(builds.open_library(builds.find())))


def _gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("note", "gpu", "none that torch can use: training runs on the CPU")
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("ok", "gpu", f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}")
    if importlib.util.find_spec("cupy") is None:
        yield Finding("bad", "cupy", "not installed: pip install 'hpcgnn[cuda]'")
        return
    yield from gpu_kernels(torch.device("cuda", torch.cuda.current_device()))


def gpu_kernels(device: torch.device) -> Iterator[Finding]:
    """Compare one GPU kernel of each kind with the CPU's; the first call compiles them."""
    from hpcgnn.kernels import selftest

    start = time.perf_counter()
    wrong = selftest.differences(device)
    seconds = time.perf_counter() - start
    for name, error in wrong.items():
        yield Finding("bad", "gpu", f"{name}: {error:.1g} off the CPU's result")
    if not wrong:
        yield Finding("ok", "gpu", f"kernels agree with the CPU's ({seconds:.0f} s)")


def _disk(folder: Path) -> Iterator[Finding]:
    for name, path in (("folder", folder.resolve()), ("tmp", Path(tempfile.gettempdir()))):
        try:
            with tempfile.NamedTemporaryFile(dir=path) as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            yield Finding("bad", name, f"{path} can't be written: {error.strerror}")
            continue
        free = shutil.disk_usage(path).free
        status = "ok" if free > 1 << 30 else "note"
        yield Finding(status, name, f"{path} writable, {human(free)} free")


def _limits() -> Iterator[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", "machine", f"{cores} cores for this process, {memory:.0f} GiB memory")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if locked == resource.RLIM_INFINITY:
        yield Finding("ok", "memlock", "unlimited")
    else:
        text = (
            f"{locked / 2**20:.0f} MiB: fast networks and pinned memory need `ulimit -l unlimited`"
        )
        yield Finding("note", "memlock", text)


def _ranks(comm: Communicator) -> Iterator[Finding]:
    hosts = comm.allgather(socket.gethostname(), "doctor")
    yield Finding("ok", "ranks", f"{comm.size}, hosts: {len(set(hosts))}")
    values = np.arange(10_000, dtype=np.float64)
    total = comm.allreduce(values * (comm.rank + 1), where="doctor")
    right = np.array_equal(total, values * (comm.size * (comm.size + 1) // 2))
    yield Finding("ok" if right else "bad", "allreduce", "correct" if right else "wrong sum")
    silent = comm.size - 1 - len(comm.ask(2.0))
    comm.barrier("doctor")
    if silent:
        text = f"{silent} ranks don't answer over UDP: a hanging rank can't be identified"
        yield Finding("note", "heartbeat", text)
    else:
        yield Finding("ok", "heartbeat", "all ranks answer")
    yield _ring(comm)


def _ring(comm: Communicator) -> Finding:
    import torch

    from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
    from hpcgnn.comm.exchange import Exchange
    from hpcgnn.comm.ring import Ring

    ring = Ring(comm)
    rows, width = _RING_BYTES // 256, 64
    outgoing = [
        Outgoing(peer, rows, _filler(comm.rank * comm.size + peer))
        for peer in ring_order(comm.rank, comm.size, +1)
    ]
    incoming = [Incoming(peer, rows) for peer in ring_order(comm.rank, comm.size, -1)]
    right, seconds = True, 1.0
    for _ in range(3):
        comm.barrier("doctor")
        start = time.perf_counter()
        for arrival in Exchange(ring, outgoing, incoming, width, torch.float32, where="doctor"):
            expected = incoming[arrival.index].peer * comm.size + comm.rank
            right = right and bool((arrival.rows_MF == expected).all())
        seconds = min(seconds, time.perf_counter() - start)
    speed = ring.bytes_sent / 3 / seconds / 2**30
    text = f"{ring.transport.name} transport, {speed:.1f} GiB/s per rank"
    return Finding("ok", "ring", text) if right else Finding("bad", "ring", f"{text}: wrong rows")


def _filler(value: float) -> Callable[[Tensor], None]:
    def fill(buffer: Tensor) -> None:
        buffer.fill_(value)

    return fill
