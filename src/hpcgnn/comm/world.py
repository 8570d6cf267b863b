"""Start and end of a job."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hpcgnn.errors import HpcgnnError


def run(main: Callable[[Any], int], parallel: bool = True) -> int:
    """Run `main(comm)`; returns the exit status."""
    comm = None
    if parallel:
        from hpcgnn.comm.communicator import Communicator

        comm = Communicator()
    try:
        return main(comm)
    except HpcgnnError as error:
        if comm is None or error.__dict__.get("speaker", comm.rank) == comm.rank:
            print(f"hpcgnn: error: {error}", file=sys.stderr, flush=True)
        if comm is not None and comm.size > 1 and "speaker" not in error.__dict__:
            from mpi4py import MPI

            MPI.COMM_WORLD.Abort(error.exit_status)
        return error.exit_status
