"""Fixtures of the tests that run jobs/ on a private Slurm."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.private_slurm import DAEMONS, PrivateSlurm, program

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """A private Slurm whose jobs find this repository and this Python."""
    missing = [name for name in DAEMONS if program(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: `sudo env/debian.sh slurm` installs them")
    from mpi4py import MPI

    if "MPICH" not in MPI.Get_library_version():
        pytest.skip("the private Slurm starts ranks through PMI2, which needs MPICH")
    environment = {
        "HPCGNN_HOME": str(REPOSITORY),
        "HPCGNN_VENV": sys.prefix,
        "HPCGNN_PROFILE": "plain",
        "OMP_NUM_THREADS": "1",
    }
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    folder.chmod(0o755)
    cluster = PrivateSlurm(folder, environment)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        if "HPCGNN_KEEP" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)
