"""Failing jobs end soon, with the right status and one line, and leave no processes or files."""

from __future__ import annotations

import os
import re
import signal

import pytest

SOON = 30.0  # seconds on a busy machine; each takes about one on a quiet one
TERMINATED = "hpcgnn: error: rank 1: ended by SIGTERM"


def test_an_exception_on_one_rank_ends_the_job(faulty):
    outcome = faulty("one_raises")
    assert outcome.status == 2 and outcome.seconds < SOON
    assert outcome.errors == [
        "hpcgnn: error: rank 1: graph.h5: nodes/labels: label 99 is outside 0..9"
    ]
    assert "Traceback" not in outcome.err and "Abort" not in outcome.err


def test_an_unexpected_exception_shows_its_traceback(faulty):
    outcome = faulty("one_surprised")
    assert outcome.status == 1 and outcome.seconds < SOON
    assert outcome.errors == [
        "hpcgnn: error: rank 1: unexpected ZeroDivisionError: cake for nobody"
    ]
    assert "[rank 1] Traceback" in outcome.err and ", in one_surprised" in outcome.err
    assert "[rank 0]" not in outcome.err


@pytest.mark.parametrize("ranks", [0, 1, 4])
def test_an_error_on_all_ranks_is_printed_once(faulty, ranks):
    outcome = faulty("all_raise", ranks)
    assert outcome.status == 2 and outcome.seconds < SOON
    assert outcome.errors == ["hpcgnn: error: graph.h5: no such file"]


def test_an_agreed_error_is_printed_once(faulty):
    outcome = faulty("all_agree")
    assert outcome.status == 2 and outcome.seconds < SOON
    assert outcome.errors == ["hpcgnn: error: rank 1: graph.h5: no such file"]


def test_exit_status_of_one_rank_is_that_of_the_job(faulty):
    outcome = faulty("one_leaves")
    assert outcome.status == 7 and outcome.errors == [] and outcome.seconds < SOON


def test_a_killed_rank_ends_the_job(faulty):
    outcome = faulty("one_killed")
    assert outcome.status != 0 and outcome.seconds < SOON


@pytest.mark.parametrize("fault", ["one_stopped", "one_stopped_in_library"])
def test_a_stopped_rank_is_named(faulty, fault):
    outcome = faulty(fault, env={"HPCGNN_TIMEOUT": "3"})
    assert outcome.status == 3 and 3 < outcome.seconds < 60
    (line,) = outcome.errors
    assert line.startswith("hpcgnn: error: rank 1 (host ")
    assert "[process is stopped] stopped answering; rank 0 waited 3 s in " in line


def test_a_rank_stopped_before_the_start_is_named(faulty):
    outcome = faulty("one_stopped_at_start", env={"HPCGNN_TIMEOUT": "3"})
    assert outcome.status == 3 and 3 < outcome.seconds < 60
    assert outcome.errors == ["hpcgnn: error: rank 0 waited 3 s for the other ranks to start"]


def test_a_rank_that_waits_elsewhere_is_named_with_its_stack(faulty):
    outcome = faulty("one_elsewhere", env={"HPCGNN_TIMEOUT": "2"})
    assert outcome.status == 3
    (line,) = outcome.errors
    assert re.search("rank [02] waited 2 s in 'after the fault'", line) and "but rank 1 (" in line
    assert "has been at 'evaluation'" in line and "waiting in 'a message nobody sends'" in line
    assert "in one_elsewhere\n" in outcome.err


def test_a_rank_that_sleeps_is_named_with_its_stack(faulty):
    outcome = faulty("one_sleeps", env={"HPCGNN_TIMEOUT": "2"})
    assert outcome.status == 3
    (line,) = outcome.errors
    assert "but rank 1 (" in line and "in one_sleeps" in line


def test_a_rank_that_ended_the_program_early_is_named(faulty):
    outcome = faulty("one_returns", env={"HPCGNN_TIMEOUT": "2"})
    assert outcome.status == 3
    (line,) = outcome.errors
    # Or rank 1 is the first whose wait is too long.
    assert ("rank 1 (" in line or "rank 1 waited" in line) and "'the end of the job'" in line


def test_a_rank_that_computes_is_given_time(faulty):
    outcome = faulty("one_works", env={"HPCGNN_TIMEOUT": "2"})
    assert outcome.status == 0 and outcome.errors == []
    assert "hpcgnn: warning: rank 0 waited 2 s" in outcome.err and "in one_works" in outcome.err


def test_strict_mode_names_the_rank_in_another_operation(faulty):
    outcome = faulty("one_in_another_operation", env={"HPCGNN_STRICT": "1"})
    assert outcome.status == 3 and outcome.seconds < SOON
    assert outcome.errors == [
        "hpcgnn: error: rank 1 is at broadcast from 0 'evaluation', while the others "
        "are at allreduce sum of float32 (3,) 'gradients'"
    ]
    assert outcome.err.count("in one_in_another_operation") == 2


def test_strict_mode_compares_shapes(faulty):
    outcome = faulty("wrong_shape", env={"HPCGNN_STRICT": "1"})
    assert outcome.status == 3
    assert "rank 1 is at allreduce sum of float64 (4,)" in outcome.errors[0]


def test_different_collective_calls_are_one_line(faulty):
    outcome = faulty("wrong_operation", 2)
    assert outcome.status == 3 and "Traceback" not in outcome.err
    assert "names: the ranks are at different places in the program" in outcome.errors[0]


@pytest.mark.parametrize("fault", ["out_of_memory", "out_of_memory_in_torch"])
def test_out_of_memory_is_one_line(faulty, fault):
    outcome = faulty(fault)
    assert outcome.status == 5 and "Traceback" not in outcome.err
    (line,) = outcome.errors
    assert line.startswith("hpcgnn: error: rank 1: out of memory") and "--halo-buffer" in line


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("interrupted", signal.SIGINT),
        ("interrupted_twice", signal.SIGINT),
        ("terminated_while_waiting", signal.SIGTERM),
    ],
)
def test_signals_end_the_job_without_a_traceback(faulty, fault, number):
    outcome = faulty(fault)
    assert outcome.status == 128 + number and outcome.seconds < SOON
    assert outcome.errors == ([TERMINATED] if number == signal.SIGTERM else [])
    assert "Traceback" not in outcome.err
    assert outcome.out == ("cleaned up\n" if number == signal.SIGTERM else "")


def test_a_signal_ends_a_library_call_at_once(faulty):
    outcome = faulty("terminated_in_library")
    assert outcome.status == 128 + signal.SIGTERM and outcome.seconds < SOON
    assert outcome.errors == [TERMINATED]


def test_a_signal_to_one_rank_leaves_no_files_of_the_others(faulty, tmp_path):
    outcome = faulty("one_terminated_while_others_write", env={"TARGET": str(tmp_path / "x")})
    assert outcome.status == 128 + signal.SIGTERM and outcome.seconds < SOON
    assert list(tmp_path.iterdir()) == []
    assert outcome.errors == [TERMINATED] and "Traceback" not in outcome.err


def test_an_error_beside_a_library_call_keeps_its_status(faulty):
    outcome = faulty("one_raises_while_another_is_in_a_library", 2)
    assert outcome.status == 2 and outcome.seconds < SOON
    assert len(outcome.errors) == 1 and "label 99" in outcome.errors[0]


def test_a_closed_stdout_ends_the_job_quietly(faulty):
    reader, writer = os.pipe()
    os.close(reader)
    outcome = faulty("prints_into_closed_pipe", 0, stdout=writer)
    os.close(writer)
    assert outcome.status == 128 + signal.SIGPIPE
    assert outcome.err.count("\n") == 1  # the line with its process number


def test_no_shared_memory_segment_is_left(faulty):
    outcome = faulty("shows_segments")
    assert outcome.status == 0
    assert outcome.out.splitlines() == ["segments []"] * 3
