"""Communicators of the MPI library: which one is meant, and when ours are freed."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from hpcgnn.comm.mpi_library import MPI
from hpcgnn.comm.single import NO_LIBRARY
from hpcgnn.errors import InputError

# Key of the attribute of an MPI communicator in which `Communicator.of` keeps ours. Both are freed
# together, unless a graph still needs ours.
KEPT = MPI.Comm.Create_keyval()


def given_or_all(mpi: MPI.Comm | None) -> MPI.Comm:
    """Return the MPI communicator that is given, or that of all ranks.

    Raises:
        InputError: it is none of the MPI library that this process has started.
    """
    if mpi is None:
        return MPI.COMM_WORLD
    if not isinstance(mpi, MPI.Comm):
        kind = f"{type(mpi).__module__}.{type(mpi).__qualname__}"
        alone = (
            " (HPCGNN_MPI=none: this process has no MPI)"
            if MPI.Get_library_version() == NO_LIBRARY
            else ""
        )
        raise InputError(
            f"comm must be a Communicator, an mpi4py communicator, or None for all ranks{alone}",
            value=kind,
        )
    if mpi == MPI.COMM_NULL:
        raise InputError("comm is MPI.COMM_NULL: this rank is not among its ranks")
    return mpi


@dataclass
class UnderWay:
    """Whether MPI may still hold messages of an operation that began, or that was left."""

    messages: bool = False


def free(owned: list[MPI.Comm], under_way: UnderWay) -> None:
    """Free what a communicator that was collected has left: MPI does so without messages.

    Not if an operation on it was interrupted: MPICH aborts the process if it is to free a
    communicator with a message that was never received.
    """
    if MPI.Is_finalized() or threading.current_thread() is not threading.main_thread():
        return  # only one thread may call MPI
    if under_way.messages:
        return
    for mpi in owned:
        if mpi != MPI.COMM_NULL:
            mpi.Free()
