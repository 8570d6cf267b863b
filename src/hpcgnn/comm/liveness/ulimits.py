"""This process's limits (`ulimit`), below which MPI ends the process with a message of its own."""

from __future__ import annotations

import resource

from hpcgnn.errors import InputError

# Measured with MPICH 5 on one node: 4 ranks start with 48 files, and with files of 16 MiB.
_FILES = 64
_FILE_BYTES = 16 << 20


def check() -> None:
    """Check the limits, before MPI starts.

    Raises:
        InputError: too few open files are allowed, or too small ones (shared memory included).
    """
    for option, kind, least, unit in (
        ("n", resource.RLIMIT_NOFILE, _FILES, 1),
        ("f", resource.RLIMIT_FSIZE, _FILE_BYTES, 1024),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            raise InputError(
                f"`ulimit -{option} {limit // unit}` leaves too little for MPI to start: give at "
                f"least {least // unit}"
            )
