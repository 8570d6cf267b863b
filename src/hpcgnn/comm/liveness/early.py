"""Ends the other ranks where one fails before it has a communicator that watches over them."""

from __future__ import annotations

import sys
from types import TracebackType

from hpcgnn.comm.launcher import launched


def watch() -> None:
    """From now on, in a process that mpiexec or srun started with others; loads nothing."""
    if launched()[1] > 1 and sys.excepthook is sys.__excepthook__:
        sys.excepthook = failed


def failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: MPI's own end would wait for the others, who may wait for this rank."""
    sys.__excepthook__(kind, error, trace)
    module = sys.modules.get("mpi4py.MPI")
    if module is None or not module.Is_initialized() or module.Is_finalized():
        return
    if module.COMM_WORLD.Get_size() > 1 and not hasattr(sys, "ps1"):
        sys.stderr.flush()
        module.COMM_WORLD.Abort(1)
