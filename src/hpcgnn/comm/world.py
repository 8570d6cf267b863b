"""Start and end of a job: MPI, errors, exit status."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hpcgnn.comm.launcher import launched, one_ends_all
from hpcgnn.comm.liveness import early, shared_memory
from hpcgnn.comm.liveness.failure import Failure, abort, end_job, shared_segments
from hpcgnn.comm.liveness.limit import TIMEOUT, given
from hpcgnn.comm.liveness.termination import terminable
from hpcgnn.errors import CommunicationError, InputError

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator


def run(
    main: Callable[[Any], int], parallel: bool | None = True, timeout: float | None = None
) -> int:
    """Run `main(comm)` on every rank and return the exit status of the job.

    Every way to fail ends in one line `hpcgnn: error: ...` on stderr (a traceback before it when
    the error is a surprise) and a status other than 0 on all ranks, within seconds.
    `parallel=False`: rank 0 runs `main(None)` without MPI, the others do nothing. None: the
    same, but only where MPI can't be started.
    `timeout`: seconds a rank is waited for (default: HPCGNN_TIMEOUT, or 600); until `main` has
    ended, HPCGNN_TIMEOUT says so to whatever else waits.
    """
    rank = launched()[0]
    comm = None
    with terminable(), _limit_of(timeout):
        try:
            if parallel is not False:
                comm = _start(timeout, needed=parallel is True)
            status = 0 if comm is None and rank > 0 else _status(main, comm)
            if sys.stdout is not None:
                sys.stdout.flush()
            if comm is not None:
                finish(comm)
                comm.close()  # MPI supports only about two thousand communicators
            return status
        except BaseException as error:
            if comm is not None:
                status = end_job(comm, error)
                if comm.size == 1:
                    with suppress(Exception):
                        comm.close()
                return status
            return _end_early(error, rank, parallel is not False)


@contextmanager
def _limit_of(timeout: float | None) -> Iterator[None]:
    """What a run is given ends with it: the next run of this process has its own limit."""
    former = os.environ.get(TIMEOUT)
    try:
        yield
    finally:
        if timeout is not None:
            os.environ.pop(TIMEOUT, None)
            if former is not None:
                os.environ[TIMEOUT] = former


def _end_early(error: BaseException, rank: int, starting: bool) -> int:
    """End a rank that has no communicator (yet).

    The error may have occurred on all ranks, on those of this node, or on this one alone.
    """
    failure = Failure.of(error)
    if starting and isinstance(error, CommunicationError):
        time.sleep(0.05 * min(rank, 40))  # the lowest rank alive reports and ends the job
        failure.print()
        abort(None, failure.status)
    local, ranks = shared_memory.local_place()
    prints = rank == 0 or (starting and local == 0 and ranks > 1)
    if not prints and one_ends_all():
        early.let_lower_end(rank)
        prints = True
    if prints:
        failure.print("" if rank == 0 else f"rank {rank} ({socket.gethostname()})")
    early.end_without_mpi(failure.status)
    return failure.status


def _start(timeout: float | None, needed: bool) -> Communicator | None:
    try:
        return start(timeout)
    except InputError:
        if needed:
            raise
        return None


def _status(main: Callable[[Any], int], comm: Communicator | None) -> int:
    try:
        return main(comm)
    except SystemExit as leave:
        if leave.code not in (None, 0):
            raise
        return 0


def start(timeout: float | None = None) -> Communicator:
    """Initialise MPI and return the communicator of all ranks.

    Raises InputError if there is no MPI library, or if it isn't the one that mpiexec belongs to.
    """
    size = launched()[1]
    if size > 1:
        shared_memory.check()
    if timeout is not None:
        # Also for the start of MPI, and whatever else waits.
        os.environ[TIMEOUT] = str(given(timeout))
    from hpcgnn.comm.mpi_library import MPI

    if size > 1 and MPI.COMM_WORLD.Get_size() == 1:
        library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        raise InputError(
            f"mpiexec or srun started {size} processes, but MPI sees one: mpi4py uses {library}; "
            "start the job with that library's mpiexec (srun: with the right --mpi)"
        )
    from hpcgnn.comm.communicator import Communicator

    comm = Communicator(timeout=timeout)
    # All MPICH ranks of the node have opened them by now: once unlinked, no crash leaves them
    # behind.
    for path in shared_segments(("mpich_shm_",)):
        path.unlink(missing_ok=True)
    return comm


def finish(comm: Communicator) -> None:
    """Wait until all ranks reach the end of the job. Collective."""
    from hpcgnn.comm.mpi_library import MPI

    with comm.at("the end of the job"):
        comm.unfinished.settle()
        comm.check_strictly("the end of the job")
        comm.wait_all([MPI.COMM_WORLD.Ibarrier()], "the end of the job")
