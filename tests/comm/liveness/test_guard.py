"""In a script without `world.run`, a rank that fails or leaves ends the others."""

from __future__ import annotations

SCRIPT = """
import sys
from hpcgnn.comm.communicator import Communicator
comm = Communicator()
if comm.rank == 1:
    {fault}
comm.barrier("waiting for all")
print("fine")
"""


def test_an_exception_on_one_rank_ends_a_script(python):
    outcome = python(3, "-c", SCRIPT.format(fault="raise KeyError('mine')"))
    assert outcome.status == 1 and outcome.seconds < 30
    assert outcome.errors == ["hpcgnn: error: rank 1: unexpected KeyError: 'mine'"]
    assert "[rank 1] Traceback" in outcome.err and outcome.out == ""


def test_an_exception_before_a_communicator_exists_ends_a_script(python):
    early = SCRIPT.partition("comm = ")[0] + (
        "from mpi4py import MPI\n"
        "if MPI.COMM_WORLD.rank == 1:\n"
        "    raise KeyError('early')\n"
        "Communicator()\n"
    )
    outcome = python(3, "-c", early)
    assert outcome.status == 1 and outcome.seconds < 30
    assert outcome.errors == ["hpcgnn: error: rank 1: unexpected KeyError: 'early'"]


def test_a_rank_that_leaves_the_program_ends_the_others(python):
    outcome = python(3, "-c", SCRIPT.format(fault="sys.exit()"))
    assert outcome.status == 3 and outcome.seconds < 30
    assert outcome.errors == [
        "hpcgnn: error: rank 1: reached the end of the program while rank 0 waits in 'waiting for "
        "all'"
    ]


def test_scripts_that_finish_on_all_ranks_end_normally(python):
    outcome = python(3, "-c", SCRIPT.format(fault="import time; time.sleep(0.5)"))
    assert (outcome.status, outcome.err) == (0, "")
    assert sorted(outcome.out) == sorted("fine\n" * 3)  # the launcher may mix the output of ranks


def test_an_exception_before_our_communicator_exists_ends_a_script(python):
    lines = "import hpcgnn\nfrom mpi4py import MPI\ncomm = MPI.COMM_WORLD\n"
    outcome = python(2, "-c", lines + "if comm.rank == 1:\n    {}['mine']\ncomm.Barrier()")
    assert outcome.status == 1 and outcome.seconds < 30
    assert "KeyError: 'mine'" in outcome.err
