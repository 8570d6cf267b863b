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
        (["program.sbatch", "r"], {}, "give the run directory, then a Python program: r ''"),
        (["train.sbatch", "g.h5"], {"HPCGNN_HOME": ""}, "launch.sh: no such file; call sbatch"),
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
    assert f"scancel --signal=USR1 {job}" in called and f"scontrol requeue {job}" in called
    assert f"squeue --noheader --jobs={job} --format=%T" in called


def _program(folder: Path, name: str, text: str) -> dict[str, str]:
    """Make a program that the scripts find first; return the variable with which they do."""
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("kind", "ranks", "cpus"), [("gpu", None, 32), ("cpu", None, 32), ("cpu", "16", 16)]
)
def test_ranks_share_the_cores_of_a_perlmutter_node(tmp_path, kind, ranks, cpus):
    variables = _program(tmp_path, "srun", 'echo "$OMP_NUM_THREADS" "$@" >called')
    variables |= {"HPCGNN_PROFILE": f"perlmutter-{kind}", "SLURM_JOB_ID": "7"}
    variables |= {"OMP_NUM_THREADS": "", "SLURM_NTASKS_PER_NODE": ranks or ""}
    variables["BASH_FUNC_module%%"] = "() { : $NEVER_SET; }"  # as Lmod's, which `set -u` would end
    done = _bash(tmp_path, "-c", f"source {JOBS}/launch.sh; launch train g", variables=variables)
    assert done.returncode == 0, done.stderr
    threads, *words = (tmp_path / "called").read_text().split()
    number = int(ranks or {"gpu": 4, "cpu": 8}[kind])
    assert int(threads) == cpus // 2
    assert {f"--ntasks-per-node={number}", f"--cpus-per-task={cpus}"} <= set(words)


def test_a_profile_names_its_own_folder_and_leaves_nothing_of_another(tmp_path):
    profiles = JOBS / "profiles"
    script = f"source {profiles}/perlmutter-gpu.sh; source {profiles}/perlmutter-cpu.sh; "
    script += 'echo "$HPCGNN_HOME $SBATCH_CONSTRAINT ${SBATCH_GPUS_PER_NODE-none}"'
    done = _bash(tmp_path, "-c", script, variables={"HPCGNN_HOME": "", "CDPATH": "/"})
    assert done.stdout == f"{JOBS.parent} cpu none\n", done.stderr


@pytest.mark.parametrize("installed", [True, False])
def test_jobs_take_an_active_conda_environment_that_has_hpcgnn(tmp_path, installed):
    (tmp_path / "bin").mkdir()
    for name in ("python", "hpcgnn") if installed else ("python",):
        _program(tmp_path / "bin", name, "")
    none = {"HPCGNN_VENV": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": str(tmp_path)}
    script = f"source {JOBS}/launch.sh; echo $HPCGNN_VENV"
    done = _bash(tmp_path, "-c", script, variables=none)
    assert (done.stdout == f"{tmp_path}\n") == installed, done.stderr


def test_a_program_of_ones_own_runs_on_all_ranks_and_imports_what_is_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("SAID = 'beside'\n")
    (tmp_path / "own.py").write_text("import beside, sys; print(beside.SAID, *sys.argv[1:])\n")
    command = [JOBS / "program.sbatch", "run", "own.py", "--two", "words of one"]
    done = _bash(tmp_path, *command, variables={"HPCGNN_RANKS": "2"})
    assert done.stdout == "beside --two words of one\n" * 2, done.stderr


@pytest.mark.parametrize("model", ["--model=net.py:Net", "--model net.py:Net", "--model sage"])
def test_a_pipeline_predicts_with_the_own_model_that_it_trained(tmp_path, model):
    variables = _program(tmp_path, "sbatch", 'echo "$@" >>called; echo 7')
    done = _bash(tmp_path, JOBS / "pipeline.sh", "g.h5", "g", *model.split(), variables=variables)
    assert done.returncode == 0, done.stderr
    predict = (tmp_path / "called").read_text().splitlines()[-1]
    assert "jobs/predict.sbatch" in predict
    assert predict.endswith("--force --model net.py:Net" if "net" in model else "--force")


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
