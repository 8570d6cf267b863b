"""Prerequisite of the other tests here: MPI over two emulated nodes."""

import sys

import pytest

from tests.slurm.private_slurm import PrivateSlurm

pytestmark = pytest.mark.slurm

PROGRAM = """
from mpi4py import MPI
world = MPI.COMM_WORLD
node = world.Split_type(MPI.COMM_TYPE_SHARED)
print(world.size, node.size, world.allreduce(world.rank), flush=True)
"""


def test_a_job_runs_on_two_nodes_with_two_ranks_each(slurm: PrivateSlurm) -> None:
    printed = slurm.run(
        "srun", "--mpi=pmi2", "--nodes=2", "--ntasks-per-node=2", sys.executable, "-c", PROGRAM
    )
    assert printed.splitlines() == ["4 2 6"] * 4
