"""Sums over the ranks of tensors that stay on their GPUs, by NCCL through torch.distributed."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import InputError, say

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator, TensorSums

CHOICES = ("mpi", "nccl")


class DeviceSums:
    """The default group of torch.distributed, with all ranks of a communicator; one per process."""

    def __init__(self, comm: Communicator) -> None:
        import torch.distributed as dist

        self._comm = comm
        # Also when the process ends, for which torch asks; it must be the group that was made here.
        self._free = weakref.finalize(self, dist.destroy_process_group, dist.group.WORLD)

    @classmethod
    def start(cls, comm: Communicator, device: torch.device, backend: str) -> DeviceSums:
        """Connect the ranks; collective. `backend`: `nccl`, or `gloo` for tensors on the host.

        Raises:
            InputError: the library can't be used, or a first sum is wrong.
        """
        import torch.distributed as dist

        limit, first = timedelta(seconds=comm.timeout), comm.rank == 0
        address = comm.broadcast(comm.address, where="connect the GPUs")
        with agreed(comm, "connect the GPUs"), _torch_errors():
            own = dist.TCPStore(comm.address, 0, comm.size, True, limit, False) if first else None
        port = comm.broadcast(own.port if own else 0, where="connect the GPUs")
        with agreed(comm, "connect the GPUs"), _torch_errors():
            store = own or dist.TCPStore(address, port, comm.size, False, limit, False)
            dist.init_process_group(
                backend,
                store=store,
                rank=comm.rank,
                world_size=comm.size,
                timeout=limit,
                device_id=device if device.type == "cuda" else None,
            )
            total = torch.ones(1, device=device)
            dist.all_reduce(total)
            if total.item() != comm.size:
                raise InputError("a first sum was wrong", value=total.item())
        return cls(comm)

    def close(self) -> None:
        """Free the group. Collective."""
        self._free()

    def add_up(self, values: Tensor, where: str) -> Tensor:
        """Replace the values, on every rank, by their sums over the ranks, and return them.

        Collective. The host does not wait for a GPU, only, with its usual limit, until every rank
        has come here.
        """
        import torch.distributed as dist

        self._comm.barrier(where)
        dist.all_reduce(values)
        return values


@contextmanager
def _torch_errors() -> Iterator[None]:
    """Turn errors of torch.distributed into ours."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(" ".join(str(error).split())[:300]) from None


def choose_device_sums(comm: Communicator, device: torch.device, wanted: str) -> TensorSums | None:
    """Return the sums for tensors on the GPUs; None if MPI is wanted, or NCCL is not possible.

    Collective. Rank 0 prints which it is, unless MPI is wanted.
    """
    if wanted == "mpi" or comm.size == 1:
        return None
    if comm.device_sums is None:
        problem = why_not(comm, device)
        try:
            if not problem:
                comm.device_sums = DeviceSums.start(comm, device, "nccl")
        except InputError as error:
            problem = str(error)
        if comm.rank == 0:
            say("gradients: " + (f"summed by MPI (no NCCL: {problem})" if problem else "NCCL"))
    return comm.device_sums


def why_not(comm: Communicator, device: torch.device) -> str:
    """Return why the ranks can't use NCCL; empty if they can. Collective."""
    own, card = "", None
    if device.type != "cuda":
        own = "it needs GPUs"
    else:
        card = (platform.node(), str(torch.cuda.get_device_properties(device).uuid))
        own = _missing()
    found = comm.allgather((own, card), where="connect the GPUs")
    problems = [text for text, _ in found if text]
    if not problems and len({place for _, place in found}) < comm.size:
        problems = ["ranks share a GPU"]
    return problems[0] if problems else ""


def _missing() -> str:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_nccl_available():
        return "this torch is built without it"
    return "this program uses torch.distributed itself" if dist.is_initialized() else ""
