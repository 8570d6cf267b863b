"""Start and end of a run: with and without MPI, in this process and in others."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from mpi4py import MPI

from hpcgnn.comm import launcher, world
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.liveness import bounded_start
from hpcgnn.errors import CommunicationError, InputError, NumericalError

SERIAL = """
import sys
from hpcgnn.comm import world
def main(comm):
    print(comm, "mpi4py" in sys.modules, "numpy" in sys.modules)
    return int(sys.argv[1])
sys.exit(world.run(main, parallel=False))
"""
PARALLEL = r"""
import sys
from hpcgnn.comm import world
def main(comm):
    sys.stdout.write(f"{comm.size} {comm.timeout}\n")
    return 5
sys.exit(world.run(main))
"""


@pytest.mark.parametrize("ranks", [0, 2])
def test_serial_verbs_run_once_without_mpi(python, ranks):
    outcome = python(ranks, "-c", SERIAL, "6")
    assert (outcome.status, outcome.out, outcome.err) == (6, "None False False\n", "")


@pytest.mark.parametrize("ranks", [0, 1, 3])
def test_parallel_verbs_run_on_all_ranks(python, ranks):
    outcome = python(ranks, "-c", PARALLEL, env={"HPCGNN_TIMEOUT": "9"})
    size = max(ranks, 1)
    assert (outcome.status, outcome.out, outcome.err) == (5, f"{size} 9.0\n" * size, "")


def test_a_run_frees_its_communicators():
    """MPI allows about two thousand, and a program may call many verbs in sequence."""
    made = []
    assert world.run(lambda comm: made.append(comm) or 0) == 0
    assert made[0].mpi == MPI.COMM_NULL


@pytest.mark.parametrize("former", [None, "9"])
def test_the_timeout_of_a_run_does_not_outlast_it(monkeypatch, former):
    """All operations inside the run use it; the next run of this process has its own."""
    if former is None:
        monkeypatch.delenv("HPCGNN_TIMEOUT", raising=False)
    else:
        monkeypatch.setenv("HPCGNN_TIMEOUT", former)
    seen = []

    def main(comm):
        within = Communicator()
        seen.append((comm.timeout, within.timeout))
        within.close()
        return 0

    for timeout in (7.0, None):
        assert world.run(main, timeout=timeout) == 0
        assert os.environ.get("HPCGNN_TIMEOUT") == former
    default = float(former or 600)
    assert seen == [(7.0, 7.0), (default, default)]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_mpiexec_of_another_mpi_is_reported(python, rank):
    env = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": "4"}
    outcome = python(0, "-c", PARALLEL, env=env)
    assert outcome.status == 2 and outcome.out == ""
    (line,) = outcome.errors  # rank 1 reports if rank 0 hasn't ended the job by then
    told = "mpiexec or srun started 4 processes, but MPI sees one: mpi4py uses"
    assert told in line and line.startswith("hpcgnn: error: rank 1 (") == (rank == "1")


ENDS = """
import os, sys
from hpcgnn.comm import world
if int(os.environ["PMI_RANK"]) in (1, 2):
    {}
sys.exit(world.run(lambda comm: 0))
"""
OF_MPICH = pytest.mark.skipif(
    "MPICH" not in MPI.Get_library_version(), reason="other launchers have ways of their own"
)


@OF_MPICH
@pytest.mark.parametrize("end", ["sys.exit(0)", "sys.exit(1)", "os._exit(0)"])
def test_a_rank_that_ends_before_mpi_starts_is_named(python, end):
    outcome = python(4, "-c", ENDS.format(end))
    assert outcome.status == 3 and outcome.seconds < 30
    assert outcome.err == (
        "hpcgnn: error: rank 0 waits in the start of MPI for ranks 1, 2, which ended before it\n"
    )


@OF_MPICH
@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        ("open('/none/here')", 2, "rank 1: /none/here: No such file or directory"),
        ("import nothing_of_that_name", 1, "rank 1: unexpected ModuleNotFoundError: No module"),
        ("os.environ['MPI4PY_LIBMPI'] = '/none.so'", 2, "rank 1 ("),
    ],
)
def test_a_rank_that_fails_before_mpi_starts_ends_the_others(python, failure, status, line):
    outcome = python(4, "-c", ENDS.format(failure))
    assert outcome.status == status and outcome.seconds < 20
    # Rank 2 fails as well: on a busy machine it may print its line before rank 1 has ended the job.
    assert len(outcome.errors) <= 2
    assert any(said.startswith(f"hpcgnn: error: {line}") for said in outcome.errors)


@OF_MPICH
def test_a_wrapper_script_does_not_hide_an_ended_rank(python, tmp_path):
    script = tmp_path / "each.sh"
    script.write_text('[ "$PMI_RANK" = 1 ] || "$1" -c "$2"; exit\n')
    start = f"import os; os.execlp('sh', 'sh', {str(script)!r}, {sys.executable!r}, {PARALLEL!r})"
    outcome = python(2, "-c", start)
    assert outcome.status == 3 and outcome.seconds < 30
    assert outcome.err == (
        "hpcgnn: error: rank 0 waits in the start of MPI for rank 1, which ended before it\n"
    )


def test_a_long_start_gives_a_note(monkeypatch, capsys):
    watch = bounded_start._Watch("rank 0", 600.0)
    monkeypatch.setattr(watch, "_said", 10.0)
    for seconds in (1.0, 9.0, 11.0, 40.0):
        watch._tell(seconds)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hpcgnn: note: rank 0 has waited")


def test_a_start_that_the_mpi_library_aborts_is_reported(python):
    """MPICH calls C's `exit`; other libraries don't read the variable."""
    outcome = python(0, "-c", PARALLEL, env={"MPICH_NOLOCAL": "x"})
    if "MPICH" in MPI.Get_library_version():
        last = outcome.errors[-1]
        assert outcome.status not in (0, 5) and last.startswith("hpcgnn: error: MPI could not be")
        assert "MPICH_NOLOCAL" in last.split("; set are ")[1].split(", ")
    else:
        assert outcome.status == 5


@pytest.mark.parametrize(
    ("rank", "size"), [("", ""), ("x", "2"), ("0", "²"), ("-1", "2"), ("2", "2"), ("0", "9" * 40)]
)
def test_malformed_launcher_variables_are_ignored(rank, size, monkeypatch):
    with monkeypatch.context() as environment:
        for name in (name for names in launcher._LAUNCHERS for name in names):
            environment.delenv(name, raising=False)
        environment.setenv("PMI_RANK", rank)
        environment.setenv("PMI_SIZE", size)
        alone = launcher.launched()
        environment.setenv("SLURM_PROCID", "3")
        environment.setenv("SLURM_STEP_NUM_TASKS", "4")
        beside = launcher.launched()
    assert (alone, beside) == ((0, 1), (3, 4))


def test_wrong_timeout_of_one_rank_reaches_the_others(python):
    code = "import os\nif os.environ['PMI_RANK'] == '1': os.environ['HPCGNN_TIMEOUT'] = 'nan'"
    outcome = python(2, "-c", f"{code}\n{PARALLEL}")
    assert outcome.status == 2 and outcome.seconds < 30 and outcome.err.count("\n") == 1
    assert "HPCGNN_TIMEOUT must be a number of seconds" in outcome.errors[0]


def test_wrong_timeout_is_reported_once(python):
    outcome = python(2, "-c", PARALLEL, env={"HPCGNN_TIMEOUT": "soon"})
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "HPCGNN_TIMEOUT" in outcome.errors[0] and "'soon'" in outcome.errors[0]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("bad", file="g.h5", value=3), 2, "hpcgnn: error: g.h5: bad (found 3)\n"),
        (CommunicationError("lost"), 3, "hpcgnn: error: lost\n"),
        (NumericalError("loss is\nnan"), 4, "hpcgnn: error: loss is nan\n"),
        (
            InputError("bad", file="g\n\x1b\udce4.h5"),
            2,
            "hpcgnn: error: g\\n\\x1b\\udce4.h5: bad\n",
        ),
        (IsADirectoryError(21, "Is a directory", "r"), 2, "hpcgnn: error: r: Is a directory\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(9), 9, ""),
        (SystemExit("stop here"), 1, "hpcgnn: error: stop here\n"),
        (SystemExit(None), 0, ""),
    ],
)
def test_errors_give_their_line_and_exit_status(capsys, parallel, error, status, line):
    def main(comm):
        raise error

    before = signal.getsignal(signal.SIGTERM)
    assert world.run(main, parallel) == status
    assert capsys.readouterr().err == line
    assert signal.getsignal(signal.SIGTERM) is before


def test_timeout_given_to_run(capsys):
    assert world.run(lambda comm: int(comm.timeout), timeout=77.0) == 77
