"""A message for the case that the MPI library calls C's `exit` while it starts."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hpcgnn.comm.launcher import launched

_READ = ("MPICH_", "MPIR_CVAR_", "PMI_", "PMIX_", "HYDRA_", "OMPI_MCA_", "UCX_", "FI_")
_MOST_NAMED = 8
_LATER = 0.3  # seconds: the lowest failing rank reports, and its launcher ends the others


@contextmanager
def told() -> Iterator[None]:
    """Report if MPI ends the process while it starts, and which variables that it reads are set."""
    ended, process = [True], os.getpid()

    def tell(_: object) -> None:
        if ended[0] and os.getpid() == process:  # not in a child process of the library
            rank = launched()[0]
            time.sleep(_LATER * min(rank, 1))
            os.write(2, f"{_line(rank)}\n".encode())

    library, handle = ctypes.CDLL(None), ctypes.create_string_buffer(1)
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(tell)
    try:
        library.__cxa_atexit(callback, None, ctypes.byref(handle))
        finalize = library.__cxa_finalize
    except AttributeError:  # another C library
        yield
        return
    try:
        yield
    finally:
        ended[0] = False
        finalize(ctypes.byref(handle))  # unregisters the callback, which must not outlive Python


def _line(rank: int) -> str:
    names = sorted(name for name in os.environ if name.startswith(_READ))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    said = f"; set are {', '.join(names[:_MOST_NAMED])}{more}" if names else ""
    who = f"rank {rank}: " if rank else ""
    return (
        f"hpcgnn: error: {who}MPI could not be started and ended this process, for the reason "
        f"above: check the environment variables that it reads{said}"
    )
