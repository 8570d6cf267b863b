"""Ends the other ranks if one fails before it has a communicator that watches over them."""

from __future__ import annotations

import os
import sys
import time

from hpcgnn.comm.launcher import end_job, launched

TYPE_CHECKING = False  # `import hpcgnn` loads this module, and `typing` takes as long as all else
if TYPE_CHECKING:
    from types import ModuleType, TracebackType

_FORWARD_SECONDS = 0.3  # an abort can overtake the line on its way through the launcher
_FIRST_SECONDS = 1.0
_NEXT_SECONDS = 0.4


def watch() -> None:
    """Install the hook if mpiexec or srun started this process with others; loads no module."""
    if launched()[1] > 1 and sys.excepthook is sys.__excepthook__:
        sys.excepthook = Hook(os.getpid())


class Hook:
    """A `sys.excepthook` that ends the other ranks, which may wait for this process."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """End the job: MPI's end would wait for the others; without MPI they would not know."""
        module = sys.modules.get("mpi4py.MPI")
        started = module is not None and module.Is_initialized()
        if hasattr(sys, "ps1") or os.getpid() != self.process or _alone(module):
            sys.__excepthook__(kind, error, trace)
            return
        from hpcgnn.comm.liveness.failure import Failure, abort

        rank = launched()[0]
        let_lower_end(rank)
        failure = Failure.of(error)
        failure.print(f"rank {rank}")
        if started:
            time.sleep(_FORWARD_SECONDS)
            abort(None, failure.status)
        end_without_mpi(failure.status)


def _alone(module: ModuleType | None) -> bool:
    """Return whether MPI has started and knows of no other rank, or has been finalized."""
    if module is None or not module.Is_initialized():
        return False
    return bool(module.Is_finalized() or module.COMM_WORLD.Get_size() == 1)


def let_lower_end(rank: int) -> None:
    """Wait long enough for lower ranks that fail too to report and end the job."""
    if rank > 0:
        time.sleep(_FIRST_SECONDS + _NEXT_SECONDS * min(rank, 10))


def end_without_mpi(status: int) -> None:
    """End the other ranks, if the launcher does that for a rank that has no MPI yet."""
    if status and launched()[1] > 1:
        time.sleep(_FORWARD_SECONDS)
        end_job(status)
