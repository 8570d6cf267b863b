"""Ends the other ranks where one fails before it has a communicator that watches over them."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from hpcgnn.comm.launcher import launched

_FORWARD_SECONDS = 0.3  # an abort can overtake the line on its way through the launcher


def watch() -> None:
    """From now on, in a process that mpiexec or srun started with others; loads nothing."""
    if launched()[1] > 1 and sys.excepthook is sys.__excepthook__:
        sys.excepthook = failed


def failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: MPI's own end would wait for the others, who may wait for this rank."""
    module = sys.modules.get("mpi4py.MPI")
    alone = module is None or not module.Is_initialized() or module.Is_finalized()
    if module is None or alone or hasattr(sys, "ps1") or module.COMM_WORLD.Get_size() == 1:
        sys.__excepthook__(kind, error, trace)
        return
    from hpcgnn.comm.liveness.failure import Failure, abort

    rank = module.COMM_WORLD.Get_rank()
    time.sleep(0.05 * min(rank, 40))  # the lowest rank that fails reports and ends the job
    failure = Failure.of(error)
    failure.print(f"rank {rank}")
    time.sleep(_FORWARD_SECONDS)
    abort(None, failure.status)
