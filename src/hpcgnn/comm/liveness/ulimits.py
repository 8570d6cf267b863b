"""This process's limits (`ulimit`), below which libraries fail with messages of their own."""

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
    check_files(_FILES, "MPI to start")
    _check("f", resource.RLIMIT_FSIZE, _FILE_BYTES, 1024, "MPI to start")


def check_files(least: int, what: str) -> None:
    """Check that `least` files may be open at a time.

    Args:
        what: who needs them, for the message.

    Raises:
        InputError: fewer are allowed.
    """
    _check("n", resource.RLIMIT_NOFILE, least, 1, what)


def _check(option: str, kind: int, least: int, unit: int, what: str) -> None:
    limit = resource.getrlimit(kind)[0]
    if limit != resource.RLIM_INFINITY and limit < least:
        raise InputError(
            f"`ulimit -{option} {limit // unit}` leaves too little for {what}: give at least "
            f"{least // unit}"
        )
