"""The MPI library, loaded and initialised with the settings this package needs.

A single process without an MPI library runs without MPI, and so does one where HPCGNN_MPI=none says
that MPI can't be started, as on a login node. Importing this module raises InputError if a launcher
has started several processes and there is no library.
"""

from __future__ import annotations

import ctypes
import os
import warnings

from hpcgnn.comm.environment import FORGONE, forget_nonsense, is_forgone
from hpcgnn.comm.launcher import launched
from hpcgnn.comm.liveness import ended_start, ulimits
from hpcgnn.comm.liveness.bounded_start import bounded_start
from hpcgnn.comm.liveness.termination import kept_handlers
from hpcgnn.errors import InputError, is_out_of_memory

__all__ = ["MPI"]


def _shortened(text: str) -> str:
    """Return the text without the paths at which mpi4py found no library."""
    lines = text.splitlines()
    return "; ".join([*lines[:1], *(line for line in lines[1:] if "No such file" not in line)])


try:
    if is_forgone():
        raise ImportError(f"{FORGONE}=none")
    import mpi4py

    # Autograd may run the backward pass, and MPI within it, in another thread.
    mpi4py.rc(thread_level="serialized", initialize=False, finalize=True)
    with kept_handlers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # world.start reports this better
        from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    if is_out_of_memory(error):
        raise
    if launched()[1] > 1:
        raise InputError(
            f"no MPI: pip install mpich, load the site's MPI module, or name the library in "
            f"MPI4PY_LIBMPI ({_shortened(str(error))})"
        ) from None
    from hpcgnn.comm import single as MPI  # type: ignore[no-redef]


def _initialise() -> None:
    """Start MPI through ctypes, which releases the GIL; mpi4py's own call doesn't."""
    try:
        start = ctypes.CDLL(MPI.__file__).MPI_Init_thread
    except (AttributeError, OSError):
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
        return
    provided = ctypes.c_int()
    rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", ""))
    who = f"rank {rank}" if rank else "this rank"
    with kept_handlers(), ended_start.told(), bounded_start(who):
        failed = start(None, None, int(MPI.THREAD_SERIALIZED), ctypes.byref(provided))
    if failed:
        raise InputError(f"MPI can't be started: MPI_Init_thread returned {failed}")
    for whole in (MPI.COMM_WORLD, MPI.COMM_SELF):
        whole.Set_errhandler(MPI.ERRORS_RETURN)


if not MPI.Is_initialized():
    ulimits.check()
    forget_nonsense()
    _initialise()
