"""Stopping training: by signals, and by the time limit even if the clock is set."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from datetime import datetime
from types import SimpleNamespace

import pytest

from hpcgnn.comm import launcher
from hpcgnn.train import ending, stop
from hpcgnn.train.config import Config
from hpcgnn.train.stop import StopRequest, TimeLimit, slurm_end_time


@pytest.mark.parametrize("step", [-86_400, 86_400])
def test_setting_the_clock_changes_nothing(step, monkeypatch):
    asked = []

    def end_time() -> float:
        asked.append(1)
        return time.time() + 100

    limit = TimeLimit(end_time)
    before = limit.seconds_left()
    real = time.time
    monkeypatch.setattr(stop.time, "time", lambda: real() + step)
    assert before == pytest.approx(100, abs=5)
    assert limit.seconds_left() == pytest.approx(100, abs=5) and asked == [1]


@pytest.mark.parametrize(("job", "end"), [("²", "1"), ("", ""), ("x", "1")])
def test_malformed_variables_are_ignored(job, end, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_JOB_END_TIME", end)
    assert slurm_end_time() is None


def test_a_malformed_end_time_is_ignored(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "²")
    assert slurm_end_time() is None


def test_a_task_of_an_array_asks_for_its_own_end(tmp_path, monkeypatch):
    """The id of one task is that of the array: Slurm's answer would be about all tasks."""
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$3" = 7_2 ] && echo 2030-01-01T00:00:00\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in (("JOB_ID", "7"), ("ARRAY_JOB_ID", "7"), ("ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert slurm_end_time() == datetime(2030, 1, 1).timestamp()


def test_a_stopped_run_of_an_own_model_names_its_file_again():
    """Resuming runs no code that only the run directory names."""
    config = Config.of(model="net.py:Net")
    run = SimpleNamespace(
        of_program=False, comm=SimpleNamespace(size=1), run_dir="runs/net", config=config
    )
    assert ending._way_on(run) == "hpcgnn train --resume runs/net --model net.py:Net"


def test_ctrl_c_requests_a_stop_and_a_second_press_ends_the_run(monkeypatch, capfd):
    clock = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: clock[0])
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
        assert request.reason == "", "ignored where it was ignored before"
        signal.signal(signal.SIGINT, signal.default_int_handler)
        monkeypatch.setenv("PMI_RANK", "0")
        monkeypatch.setenv("PMI_SIZE", "1")
        _press_twice(clock)
        _without_launcher(monkeypatch)
    finally:
        signal.signal(signal.SIGINT, former)
    assert capfd.readouterr().err.count("stops after this epoch") == 2


def _without_launcher(monkeypatch):
    """Without a launcher no press is sent twice: the second one counts, however soon."""
    for names in launcher._LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_two_presses_during_one_library_call_count_as_two(monkeypatch):
    """Python's handler is called only once for both, after the call."""
    for name in {name for names in launcher._LAUNCHERS for name in names}:
        monkeypatch.delenv(name, raising=False)
    twice = f"sleep 0.1; kill -INT {os.getpid()}; sleep 0.1; kill -INT {os.getpid()}"
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest(), pytest.raises(KeyboardInterrupt):
            pressing = subprocess.Popen(["sh", "-c", twice])
            pressing_ends = time.monotonic() + 20
            while pressing.poll() is None and time.monotonic() < pressing_ends:
                sum(range(20_000_000))  # requests no signals
    finally:
        pressing.wait()
        signal.signal(signal.SIGINT, former)


def _press_twice(clock):
    with StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the launcher's copy of the same press
        assert request.reason == "Ctrl-C"
        clock[0] += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_cpu_time_limit_requests_a_stop():
    with StopRequest() as asked:
        os.kill(os.getpid(), signal.SIGXCPU)
        assert asked.reason == "SIGXCPU"


def test_a_closed_terminal_requests_a_stop_except_under_nohup():
    former = signal.getsignal(signal.SIGHUP)
    try:
        for handler, reason in ((signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, "")):
            signal.signal(signal.SIGHUP, handler)
            with StopRequest() as asked:
                os.kill(os.getpid(), signal.SIGHUP)
                assert asked.reason == reason
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, former)


def test_signals_are_handled_when_no_more_files_can_be_opened(monkeypatch):
    def full() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(stop.os, "pipe", full)
    with StopRequest() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.reason == "SIGTERM"
