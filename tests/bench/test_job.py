"""Running other programs: their answers, their failures, and that no process of them remains."""

import os
import sys
import time

import pytest

from hpcgnn.bench import job
from hpcgnn.bench.job import Ended, Layout, Limits
from hpcgnn.errors import InputError
from hpcgnn.system import ProcessState

LIMITS = Limits(60, 1 << 40)


def python(code, limits=LIMITS):
    return job.run([sys.executable, "-S", "-c", code], dict(os.environ), limits)


def test_an_answer_is_the_last_line():
    ended = python("print('noise'); print('{\"seconds\": [1]}')")
    assert ended.problem is None
    assert job.answer(ended) == {"seconds": [1]}


@pytest.mark.parametrize("output", ["", "words", "[1]", "{", "{" * 100_000])
def test_missing_or_invalid_answers_are_reported(output):
    assert job.answer(Ended(output, None)) == {
        "problem": "its answer is not a JSON object of results"
    }


def test_a_failure_is_one_line():
    ended = python(
        "import sys; print('hpcgnn: error: no such graph', file=sys.stderr); sys.exit(2)"
    )
    assert ended.problem == "no such graph"
    assert job.answer(ended) == {"problem": "no such graph"}
    box = r"'-----\nmpiexec was run as root.\nDo otherwise.\n-----'"
    ended = python(f"import sys; print({box}, file=sys.stderr); sys.exit(1)")
    assert ended.problem == "mpiexec was run as root."


def test_a_killed_program_is_reported():
    ended = python("import os; os.kill(os.getpid(), 9)")
    assert ended.problem == "killed, probably for lack of memory"


def test_a_missing_program_is_reported(tmp_path):
    ended = job.run([str(tmp_path / "none")], dict(os.environ), LIMITS)
    assert ended.problem == "can't be started: No such file or directory"


def test_a_job_above_its_memory_limit_is_ended_with_its_children(tmp_path):
    file = tmp_path / "child"
    child = "x = bytearray(200_000_000); import time; time.sleep(60)"
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-S', '-c', {child!r}])\n"
        f"open({str(file)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(60)"
    )
    ended = python(code, Limits(60, 150_000_000))
    assert ended.problem == "out of memory (above 150.0 MB)"
    deadline = time.monotonic() + 10
    while _runs(int(file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid):
    state = ProcessState.of(pid)
    return state is not None and state.letter != "Z"


def test_a_job_above_its_time_limit_is_ended():
    assert python("import time; time.sleep(60)", Limits(0.2, 1 << 40)).problem == (
        "not done after 0.2 s"
    )


def test_layouts_of_ranks_and_threads_are_parsed():
    assert Layout.parse("4x2") == Layout(4, 2) and Layout.parse("3") == Layout(3, 1)
    assert str(Layout(1, 2)) == "1 rank x 2 threads" and Layout(4, 2).processors == 8
    for text in ("", "0x1", "2x", "x2", "2x1x1", "-1x1", "²x1", "99999999x1"):
        with pytest.raises(InputError, match="RANKSxTHREADS"):
            Layout.parse(text)


def test_a_job_does_not_inherit_the_variables_of_a_rank():
    env = job.environment(2, {"PMI_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "PATH": "/bin"})
    assert env == {"PATH": "/bin", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
