"""Limits on open files or file sizes that are too low are reported before MPI aborts."""

from __future__ import annotations

import resource

import pytest

from hpcgnn.comm.liveness import ulimits
from hpcgnn.errors import InputError


@pytest.mark.parametrize(
    ("kind", "low", "words"),
    [
        (resource.RLIMIT_NOFILE, 12, "ulimit -n 12"),
        (resource.RLIMIT_FSIZE, 4096, "ulimit -f 4`"),
    ],
)
def test_a_limit_too_low_for_mpi_is_refused_in_one_line(kind, low, words):
    soft, hard = resource.getrlimit(kind)
    ulimits.check()
    resource.setrlimit(kind, (low, hard))
    try:
        with pytest.raises(InputError, match=words):
            ulimits.check()
    finally:
        resource.setrlimit(kind, (soft, hard))
