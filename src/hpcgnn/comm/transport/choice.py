"""The choice of the transport of GPU messages, and tests of whether MPI can use device memory."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.comm.mpi_library import MPI
from hpcgnn.comm.transport import neighbours
from hpcgnn.comm.transport.delayed import DelayedTransport, Link
from hpcgnn.comm.transport.host import HostTransport, Slot, Transport
from hpcgnn.comm.transport.ipc import IpcTransport
from hpcgnn.comm.transport.shared import CudaMemory
from hpcgnn.comm.transport.staged import CudaCopier, OnDevice, StagedTransport
from hpcgnn.errors import CommunicationError, InputError, say
from hpcgnn.system import find_program, loaded_files

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

CHOICES = ("auto", "ipc", "staged", "cuda-aware")
_TAG = 13
_ROWS = (
    1 << 10,
    1 << 21,
)  # numbers in the rows that are sent around: MPI sends long ones otherwise
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_MPI_LIBRARY = re.compile(r"\S*/lib(?:mpi|mpich|mpi_cray|mpi_gnu\w*|mpi_nvidia\w*)\.so[\d.]*$")


@dataclass
class _Shared(Slot):
    done: Any  # kernels have finished with it


class CudaAwareTransport(OnDevice):
    """A transport in which MPI reads and writes device memory, once kernels have finished."""

    name = "CUDA-aware MPI"

    def over(self, near: Tensor) -> Slot:
        return _Shared(near, near, self._copier.mark())

    def before_send(self, slot: Slot, num_bytes: int, peer: int) -> None:
        _shared(slot).done = self._copier.mark()

    def may_send(self, slot: Slot) -> bool:
        return bool(_shared(slot).done.query())

    def may_receive(self, slot: Slot) -> bool:
        return bool(_shared(slot).done.query())

    def after_receive(self, slot: Slot, num_bytes: int) -> None:
        pass

    def release(self, slot: Slot) -> None:
        _shared(slot).done = self._copier.mark()


def _shared(slot: Slot) -> _Shared:
    if not isinstance(slot, _Shared):
        raise TypeError("a slot of another transport")
    return slot


def choose_transport(comm: Communicator, device: torch.device, wanted: str = "auto") -> Transport:
    """Return the transport of this job, the same on all ranks; rank 0 prints it. Collective.

    If HPCGNN_LINK is set, messages are delayed, on each rank by its own value.

    Args:
        wanted: `auto`: within nodes CUDA IPC if ranks prove that they can read each other's memory;
            elsewhere CUDA-aware MPI if the library claims and proves it, else staged; `ipc`: the
            same, but an error if CUDA IPC doesn't work; `staged`; `cuda-aware`.

    Raises:
        InputError: `ipc` or `cuda-aware` was requested and doesn't work, or HPCGNN_LINK is invalid.
    """
    if wanted not in CHOICES:
        raise InputError(f"--transport must be one of {', '.join(CHOICES)}", value=wanted)
    with agreed(comm, "choose transport"):
        link = Link.from_environment()
    transport = _undelayed(comm, device, wanted)
    if link is None:
        return transport
    transport = DelayedTransport(transport, link)
    if comm.rank == 0:
        say(f"messages: {transport.name}")
    return transport


def _undelayed(comm: Communicator, device: torch.device, wanted: str) -> Transport:
    on_gpu = comm.allreduce(int(device.type == "cuda"), "min", where="choose transport")
    if not on_gpu:
        return HostTransport()
    copier = CudaCopier(device)
    transport, reason = None, ""
    if wanted in ("auto", "ipc"):
        transport, reason = _within_nodes(comm, copier, wanted)
    if transport is None:
        transport, problem = _between_nodes(comm, copier, wanted)
        reason = problem + reason
    if comm.rank == 0:
        say(f"messages: {transport.name} ({reason})")
    return transport


def _within_nodes(
    comm: Communicator, copier: CudaCopier, wanted: str
) -> tuple[Transport | None, str]:
    """Return CUDA IPC with a transport between nodes, or None, and the reason."""
    near = neighbours.of_all(comm)
    alone = len(set(near)) == comm.size
    if alone and (comm.size > 1 or wanted == "auto"):
        memory, problem = None, "no two ranks share a node"
    else:
        memory = _memory(copier.device)
        problem = neighbours.why_not(comm, memory, near[comm.rank])
    if problem and wanted == "ipc":
        raise InputError(f"--transport ipc is not available: {problem}")
    if problem or memory is None:
        return None, "" if alone else f"; no CUDA IPC: {problem}"
    if len(near[comm.rank]) == comm.size:
        return IpcTransport(copier, memory, near[comm.rank]), "verified by reading"
    between, reason = _between_nodes(comm, copier, "auto")
    return IpcTransport(copier, memory, near[comm.rank], between), reason


def _memory(device: torch.device) -> CudaMemory | None:
    try:
        return CudaMemory(device)
    except ImportError:
        return None


def _between_nodes(
    comm: Communicator, copier: CudaCopier, wanted: str
) -> tuple[StagedTransport | CudaAwareTransport, str]:
    """Return the staged or the CUDA-aware transport, and the reason."""
    if wanted == "staged":
        return StagedTransport(copier), "as requested"
    problem = why_not(comm, copier.device)
    if not problem:
        return CudaAwareTransport(copier), "verified by a round trip"
    if wanted == "cuda-aware":
        raise InputError(f"--transport cuda-aware is not available: {problem}")
    return StagedTransport(copier), problem


def why_not(comm: Communicator, device: torch.device) -> str:
    """Return why some rank can't give device memory to MPI; empty if all can. Collective."""
    own = "" if says_cuda_aware() else "MPI doesn't report that it is CUDA-aware"
    if expandable_segments():
        own = (
            "other processes can't read the memory of torch's expandable_segments: remove it from "
            + " and ".join(name for name in _ALLOCATOR if name in os.environ)
        )
    problems = [text for text in comm.allgather(own, where="choose transport") if text]
    for length in _ROWS if comm.size > 1 else ():
        if problems:
            break
        sent = torch.arange(length, dtype=torch.float32, device=device) + comm.rank
        got, back = torch.zeros_like(sent), torch.zeros_like(sent)
        torch.cuda.synchronize(device)
        own = round_trip(comm, sent, got, back)
        problems = [text for text in comm.allgather(own, where="choose transport") if text]
    return problems[0] if problems else ""


def expandable_segments() -> bool:
    """Return whether torch allocates GPU memory in a way that CUDA IPC can't share."""
    said = ",".join(os.environ.get(name, "") for name in _ALLOCATOR)
    return re.search(r"expandable_segments\s*:\s*true", said, re.IGNORECASE) is not None


def round_trip(
    comm: Communicator, sent: torch.Tensor, got: torch.Tensor, back: torch.Tensor
) -> str:
    """Send `sent` to the next rank, which returns it into `back`; return what failed, or ""."""
    previous, following = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    try:
        for to, origin, out, into in (
            (following, previous, sent, got),
            (previous, following, got, back),
        ):
            requests = [comm.irecv(into, origin, _TAG), comm.isend(out, to, _TAG)]
            comm.wait_all(requests, "device round trip")
    except (MPI.Exception, CommunicationError, TypeError, ValueError, BufferError) as error:
        return f"rank {comm.rank}: {' '.join(str(error).split())}"
    expected = sent - comm.rank + previous
    if torch.equal(got, expected) and torch.equal(back, sent):
        return ""
    return f"rank {comm.rank}: a row came back changed"


def says_cuda_aware() -> bool:
    """Return whether the MPI library of this process says that it is CUDA-aware.

    Cray MPICH: the variable MPICH_GPU_SUPPORT_ENABLED. MPICH and Open MPI:
    `MPIX_Query_cuda_support`, or `ompi_info` if that is missing.
    """
    version = MPI.Get_library_version().upper()
    if "CRAY MPICH" in version:
        return os.environ.get("MPICH_GPU_SUPPORT_ENABLED", "0") == "1"
    query = _query_function()
    if query is not None:
        return bool(query())
    return "OPEN MPI" in version and _ompi_info()


def _query_function() -> Callable[[], int] | None:
    for path in _mpi_libraries():
        try:
            function = ctypes.CDLL(path).MPIX_Query_cuda_support
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_int
        return function
    return None


def _mpi_libraries() -> list[str]:
    """Return the MPI libraries that this process has loaded."""
    return [str(path) for path in loaded_files() if _MPI_LIBRARY.search(str(path))]


def _ompi_info() -> bool:
    program = find_program("ompi_info")
    if program is None:
        return False
    try:
        result = subprocess.run(
            [program, "--parsable", "--all"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return "mpi_built_with_cuda_support:value:true" in result.stdout
