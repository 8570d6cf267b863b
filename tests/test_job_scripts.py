"""The job scripts outside a queue: names and variables that are wrong, and a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcgnn.cli import main

JOBS = Path(__file__).parents[1] / "jobs"


def _bash(
    folder: Path, *args: object, variables: dict[str, str], **options: int
) -> subprocess.CompletedProcess[str]:
    defaults = {"HPCGNN_HOME": str(JOBS.parent), "HPCGNN_VENV": sys.prefix}
    return subprocess.run(
        ["bash", *args],
        cwd=folder,
        env=os.environ | defaults | variables,
        text=True,
        timeout=60,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize(
    ("args", "variables", "said"),
    [
        (["train.sbatch", "g.h5", "--run-dir", "r"], {"HPCGNN_RANKS": "x"}, "HPCGNN_RANKS must be"),
        (["sweep.sbatch", "-list", "g.h5"], {"SLURM_ARRAY_TASK_ID": "1e touch ran;"}, "a line"),
        (["sweep.sbatch", "-list", "g.h5"], {"SLURM_ARRAY_TASK_ID": "1"}, "several files named a"),
        (["sweep.sbatch", "-list", "g.h5"], {"SLURM_ARRAY_TASK_ID": "3"}, r"a file: $'\E[31m'"),
        (["pipeline.sh", "--nodes"], {}, "a value after: --nodes"),
        (["pipeline.sh", "--nodes", "PATH[$(touch ran)]", "g.h5", "web"], {}, "not a number of"),
        (["pipeline.sh", "g.h5", ".."], {}, "NAME must fit in the names of files: .."),
        (["figures.sh", "out"], {"SMALLER": "1.5"}, "figures.sh: SMALLER must be a whole number"),
        (["gpu_check.sh"], {"LIMIT": "\x1b[31m"}, r"at least 1: $'\E[31m'"),
        (["predict.sbatch"], {"HPCGNN_GPUS_PER_NODE": "0"}, "HPCGNN_GPUS_PER_NODE must be a whole"),
        (["convert.sbatch", "no.csv", "g.h5"], {"CDPATH": ".", "HPCGNN_VENV": "env"}, "no.csv: no"),
    ],
)
def test_wrong_words_are_refused_in_one_line(tmp_path, args, variables, said):
    (tmp_path / "sub").mkdir()
    (tmp_path / "env").symlink_to(sys.prefix)
    for name in ("a.toml", "sub/a.toml"):
        (tmp_path / name).touch()
    (tmp_path / "-list").write_text("a.toml\r\nsub/a.toml\n\x1b[31m\n", newline="")
    before = sorted(tmp_path.iterdir())
    done = _bash(tmp_path, JOBS / args[0], *args[1:], variables=variables)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("task", [None, "2"])
def test_a_full_log_keeps_neither_signal_nor_job_back(tmp_path, task):
    """Bash ends a trap, and the script, at a line that it can't print. Job 7 may be an array's."""
    for name, prints in (("squeue", "echo RUNNING"), ("scontrol", ""), ("scancel", "")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>called\n{prints}\n')
        program.chmod(0o755)
    (tmp_path / "REQUEUE").touch()
    script = f"source {JOBS}/launch.sh; step=1; forward TERM; requeue_if_stopped ."
    variables = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    if task is not None:
        variables |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": task}
    job = "7" if task is None else f"7_{task}"
    with Path("/dev/full").open("w") as full:
        done = _bash(tmp_path, "-c", script, variables=variables, stdout=full.fileno())
    assert done.returncode == 0, done.stderr
    called = (tmp_path / "called").read_text().splitlines()
    assert "scancel --signal=USR1 7" in called and "scontrol requeue 7" in called


@pytest.mark.parametrize(("number", "status"), [("INT", 7), ("TERM", 8), ("HUP", 8), ("KILL", -9)])
def test_what_a_script_runs_gets_the_signals_of_the_script(tmp_path, number, status):
    """Also where the script alone gets them, which mpiexec and ranks would survive."""
    runs = "trap 'exit 7' INT; trap 'exit 8' TERM; echo; while :; do sleep 0.02; done"
    script = f'source {JOBS}/attended.sh; attended bash -c "$1"'
    with subprocess.Popen(
        ["bash", "-c", script, "-", runs],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.Signals[f"SIG{number}"])
        assert process.wait(20) == status
        assert process.stdout.read() == ""  # at its end, since the command has ended as well


def test_a_full_disk_leaves_former_job_scripts(tmp_path, monkeypatch, capsys):
    assert main.main(["jobs", str(tmp_path)]) == 0
    mine = tmp_path / "jobs" / "train.sbatch"
    mine.write_text("# changed\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    copied = []

    def copy(source: Path, place: Path) -> None:
        copied.append(place)
        place.touch()
        if len(copied) % 5 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(shutil, "copy2", copy)
        assert main.main(["jobs", str(tmp_path), "--force"]) == 2
        assert main.main(["jobs", str(tmp_path / "a" / "b")]) == 2
    assert capsys.readouterr().err.count("jobs: can't be written: No space left on device") == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]
    assert main.main(["jobs", str(tmp_path), "--force"]) == 0
    assert mine.read_bytes() == (JOBS / "train.sbatch").read_bytes()
