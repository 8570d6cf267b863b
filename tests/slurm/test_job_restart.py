"""jobs/train.sbatch: time limits, preemption, lost nodes and scancel, beside an undisturbed run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.slurm.private_slurm import PrivateSlurm, wait_for

pytestmark = pytest.mark.slurm

TRAIN = Path(__file__).parents[2] / "jobs" / "train.sbatch"
Mpirun = Callable[..., subprocess.CompletedProcess[str]]
OPTIONS = ["--model", "sage", "--hidden", 16, "--checkpoint-every", 4]


def _ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def partition(mpirun: Mpirun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`partition(4)`: a small graph in 4 parts, made once."""
    folder = tmp_path_factory.getbasetemp()

    def make(parts: int) -> Path:
        graph, path = folder / "graph.h5", folder / f"graph.p{parts}.h5"
        size = ["--nodes", 500, "--degree", 8, "--features", 8, "--classes", 4, "--seed", 0]
        if not graph.exists():
            _ok(mpirun(0, "generate", "sbm", graph, *size))
        if not path.exists():
            _ok(mpirun(parts, "partition", graph, "--method", "block", "-o", path))
        return path

    return make


def _epochs(run_dir: Path) -> list[int]:
    journal = run_dir / "metrics.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [json.loads(line)["epoch"] for line in lines if line.endswith("}")]


def _parameters(run_dir: Path, epoch: int) -> dict[str, np.ndarray]:
    """Everything under model/ and optimizer/ in the checkpoint of an epoch."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(run_dir / "checkpoints" / f"epoch-{epoch:06d}.h5") as file:
        file.visititems(keep)
    return found


def _assert_same(run_dir: Path, undisturbed: Path, epochs: int) -> None:
    assert _epochs(run_dir) == list(range(1, epochs + 1))
    ours, theirs = _parameters(run_dir, epochs), _parameters(undisturbed, epochs)
    assert ours.keys() == theirs.keys() and len(ours) > 6
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    assert not (run_dir / "REQUEUE").exists()


def _processes(word: str) -> Iterator[tuple[int, str]]:
    """Id and command line of the processes that mention `word`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            yield int(path.parent.name), line


def _ranks(run_dir: Path) -> list[int]:
    """The two ranks that train into `run_dir`."""
    rank = "python -P -m hpcgnn"
    found = [pid for pid, line in _processes(str(run_dir)) if line.startswith(rank)]
    assert len(found) == 2
    return found


def _kill(processes: list[int], number: int) -> None:
    for process in processes:
        os.kill(process, number)


def test_two_nodes_and_one_lost(
    slurm: PrivateSlurm, mpirun: Mpirun, partition: Callable[[int], Path], tmp_path: Path
) -> None:
    """Two ranks on each of two nodes; one node goes down mid-run; the requeued job resumes."""
    parts, epochs = partition(4), 24
    common = [parts, *OPTIONS, "--epochs", epochs]
    _ok(mpirun(4, "train", *common, "--run-dir", tmp_path / "undisturbed"))
    shape = ["--nodes=2", "--ntasks-per-node=2"]
    job = slurm.submit(*shape, TRAIN, *common, "--run-dir", tmp_path / "run", cwd=tmp_path)
    wait_for(lambda: len(_epochs(tmp_path / "run")) > 5, 60, "5 epochs")
    slurm.set_node("n2", "down")
    try:
        slurm.wait(job, "PENDING")
    finally:
        slurm.set_node("n2", "resume")
    assert 5 < len(_epochs(tmp_path / "run")) < epochs
    slurm.release(job)
    slurm.wait(job, "COMPLETED")
    assert slurm.field(job, "Restarts") == "1"
    assert "resuming after epoch" in slurm.log(job)
    _assert_same(tmp_path / "run", tmp_path / "undisturbed", epochs)


def test_time_limit(
    slurm: PrivateSlurm, mpirun: Mpirun, partition: Callable[[int], Path], tmp_path: Path
) -> None:
    """Slurm's signal before the limit: checkpoint, requeue, finish."""
    parts, epochs, run_dir = partition(2), 40, tmp_path / "run"
    # --time-margin 0: training must heed the signal, not its own watch on the time limit.
    common = [parts, *OPTIONS, "--epochs", epochs, "--time-margin", 0]
    limit = ["--ntasks=2", "--time=2", "--signal=B:USR1@60"]
    job = slurm.submit(*limit, TRAIN, *common, "--run-dir", run_dir, cwd=tmp_path)
    wait_for(lambda: len(_epochs(run_dir)) > 5, 55, "5 epochs")
    # Slurm looks at time limits every 30 s: held still, training can't end before.
    ranks = _ranks(run_dir)
    _kill(ranks, signal.SIGSTOP)
    try:
        _ok(mpirun(2, "train", *common, "--run-dir", tmp_path / "undisturbed"))
        wait_for(lambda: "SIGUSR1" in slurm.log(job), 120, "the signal")
    finally:
        _kill(ranks, signal.SIGCONT)
    slurm.wait(job, "PENDING", 90)
    assert re.search(r"stopping after epoch \d+: SIGUSR1", slurm.log(job))
    assert 5 < len(_epochs(run_dir)) < epochs
    slurm.run("scontrol", "update", f"jobid={job}", "TimeLimit=10")
    slurm.release(job)
    slurm.wait(job, "COMPLETED", 60)
    _assert_same(run_dir, tmp_path / "undisturbed", epochs)


def test_preemption(
    slurm: PrivateSlurm, mpirun: Mpirun, partition: Callable[[int], Path], tmp_path: Path
) -> None:
    """A job of higher priority takes the nodes: checkpoint, requeue by Slurm, finish."""
    parts, epochs, run_dir = partition(2), 40, tmp_path / "run"
    common = [parts, *OPTIONS, "--epochs", epochs]
    job = slurm.submit("--ntasks=2", TRAIN, *common, "--run-dir", run_dir, cwd=tmp_path)
    wait_for(lambda: len(_epochs(run_dir)) > 5, 55, "5 epochs")
    _kill(_ranks(run_dir), signal.SIGSTOP)  # until Slurm's SIGCONT, which comes before its SIGTERM
    urgent = slurm.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 3", cwd=tmp_path
    )
    slurm.wait(job, "PENDING", 90)
    stopped = len(_epochs(run_dir))
    assert re.search(r"stopping after epoch \d+: SIGTERM", slurm.log(job))
    assert (run_dir / "checkpoints" / f"epoch-{stopped:06d}.h5").exists() and 5 < stopped < epochs
    slurm.wait(urgent, "COMPLETED", 60)
    slurm.release(job)
    slurm.wait(job, "COMPLETED", 60)
    assert slurm.field(job, "Restarts") == "1"
    _ok(mpirun(2, "train", *common, "--run-dir", tmp_path / "undisturbed"))
    _assert_same(run_dir, tmp_path / "undisturbed", epochs)


def test_scancel_leaves_no_orphan(
    slurm: PrivateSlurm, partition: Callable[[int], Path], tmp_path: Path
) -> None:
    parts, run_dir = partition(2), tmp_path / "cancelled"
    command = [TRAIN, parts, *OPTIONS, "--epochs", 1000000, "--run-dir", run_dir]
    job = slurm.submit("--ntasks=2", *command, cwd=tmp_path)
    wait_for(lambda: len(_epochs(run_dir)) > 3, 60, "3 epochs")
    assert len(list(_processes(str(run_dir)))) >= 4  # two ranks, srun, the batch shell
    slurm.run("scancel", job)
    wait_for(lambda: not list(_processes(str(run_dir))), 30, "the end of all processes")
    slurm.wait(job, "CANCELLED")
    time.sleep(1)
    assert slurm.field(job, "Restarts") == "0" and slurm.state(job) == "CANCELLED"
