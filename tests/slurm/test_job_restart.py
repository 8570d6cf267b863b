"""jobs/train.sbatch after time limits, preemption, lost nodes, beside undisturbed runs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.slurm.private_slurm import PATIENCE, PrivateSlurm, wait_for

pytestmark = pytest.mark.slurm

TRAIN = Path(__file__).parents[2] / "jobs" / "train.sbatch"
Mpirun = Callable[..., subprocess.CompletedProcess[str]]
Partition = Callable[[int], Path]
EPOCHS, HELD = 12, 7
# On a busy machine too: the ranks of a job continue only after a signal has reached them.
MODEL = f"""
import os, signal, time
import torch
from hpcgnn import nn

class Net(torch.nn.Module):
    def __init__(self, graph):
        super().__init__()
        self.first = nn.SAGEConv(graph.features.shape[1], 16)
        self.second = nn.SAGEConv(16, graph.num_classes)

    def forward(self, graph, x):
        first_try = "SLURM_JOB_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ
        if first_try and graph.execution.epoch == {HELD} and self.training:
            wait_for_a_signal()
        return self.second(graph, torch.relu(self.first(graph, x)))

def wait_for_a_signal():
    heard = []
    def hear(number):
        answer = signal.getsignal(number)
        signal.signal(number, lambda *given: (heard.append(number), answer(*given)))
    hear(signal.SIGUSR1)
    hear(signal.SIGTERM)
    while not heard:
        time.sleep(0.05)
"""


def _ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("restart")
    (path / "net.py").write_text(MODEL)
    return path


@pytest.fixture
def partition(mpirun: Mpirun, folder: Path) -> Partition:
    """Return `partition(4)`: a small graph in 4 parts, made once."""

    def make(parts: int) -> Path:
        graph, path = folder / "graph.h5", folder / f"graph.p{parts}.h5"
        size = ["--nodes", 500, "--degree", 8, "--features", 8, "--classes", 4, "--seed", 0]
        if not graph.exists():
            _ok(mpirun(0, "generate", "sbm", graph, *size))
        if not path.exists():
            block = ["--method", "block", "--parts", parts, "-o", path]
            _ok(mpirun(0, "partition", graph, *block))
        return path

    return make


@pytest.fixture
def options(folder: Path) -> list[object]:
    # --time-margin 0: training must react to the signal, not to its own check of the time limit.
    more = ["--checkpoint-every", 4, "--epochs", EPOCHS, "--time-margin", 0]
    return ["--model", f"{folder / 'net.py'}:Net", *more]


@pytest.fixture
def undisturbed(
    mpirun: Mpirun, folder: Path, partition: Partition, options: list[object]
) -> Callable[[int], Path]:
    """Return `undisturbed(2)`: the run directory of a training on 2 ranks, made once."""

    def make(ranks: int) -> Path:
        run_dir = folder / f"undisturbed{ranks}"
        if not run_dir.exists():
            _ok(mpirun(ranks, "train", partition(ranks), *options, "--run-dir", run_dir))
        return run_dir

    return make


def _epochs(run_dir: Path) -> list[int]:
    journal = run_dir / "metrics.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [json.loads(line)["epoch"] for line in lines if line.endswith("}")]


def _parameters(run_dir: Path, epoch: int) -> dict[str, np.ndarray]:
    """Return everything under model/ and optimizer/ in the checkpoint of an epoch."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(run_dir / "checkpoints" / f"epoch-{epoch:06d}.h5") as file:
        file.visititems(keep)
    return found


def _assert_resumed(slurm: PrivateSlurm, job: int, run_dir: Path, undisturbed: Path) -> None:
    """Check that the job resumed where it was paused and ended like an undisturbed run."""
    assert slurm.field(job, "Restarts") == "1"
    assert "resuming after epoch" in slurm.log(job)
    assert _epochs(run_dir) == list(range(1, EPOCHS + 1))
    ours, theirs = _parameters(run_dir, EPOCHS), _parameters(undisturbed, EPOCHS)
    assert ours.keys() == theirs.keys() and len(ours) > 6
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    assert not (run_dir / "REQUEUE").exists()


def _wait_until_held(run_dir: Path) -> None:
    wait_for(lambda: len(_epochs(run_dir)) == HELD - 1, PATIENCE, f"{HELD - 1} epochs")


def _processes(word: str) -> Iterator[tuple[int, str]]:
    """Return id and command line of the processes that mention `word`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            yield int(path.parent.name), line


def test_a_job_resumes_after_losing_one_of_two_nodes(
    slurm, partition, options, undisturbed, tmp_path
) -> None:
    """Two ranks on each of two nodes; one node goes down mid-run; the requeued job resumes."""
    run_dir, shape = tmp_path / "run", ["--nodes=2", "--ntasks-per-node=2"]
    job = slurm.submit(*shape, TRAIN, partition(4), *options, "--run-dir", run_dir, cwd=tmp_path)
    _wait_until_held(run_dir)
    slurm.set_node("n2", "down")
    try:
        slurm.wait(job, "PENDING")
    finally:
        slurm.set_node("n2", "resume")
    assert HELD - 1 <= len(_epochs(run_dir)) <= HELD
    slurm.release(job)
    slurm.wait(job, "COMPLETED")
    _assert_resumed(slurm, job, run_dir, undisturbed(4))


def test_a_job_resumes_after_its_time_limit(
    slurm, partition, options, undisturbed, tmp_path
) -> None:
    """Slurm's signal before the limit: checkpoint, requeue, finish."""
    run_dir, limit = tmp_path / "run", ["--ntasks=2", "--time=60", "--signal=B:USR1@600"]
    job = slurm.submit(*limit, TRAIN, partition(2), *options, "--run-dir", run_dir, cwd=tmp_path)
    _wait_until_held(run_dir)
    # Its signal is due at once, and comes when Slurm next checks time limits, every 30 s.
    slurm.run("scontrol", "update", f"jobid={job}", "TimeLimit=9")
    slurm.wait(job, "PENDING")
    assert f"stopping after epoch {HELD}: SIGUSR1" in slurm.log(job)
    assert len(_epochs(run_dir)) == HELD
    slurm.run("scontrol", "update", f"jobid={job}", "TimeLimit=60")
    slurm.release(job)
    slurm.wait(job, "COMPLETED")
    _assert_resumed(slurm, job, run_dir, undisturbed(2))


def test_a_job_resumes_after_preemption(slurm, partition, options, undisturbed, tmp_path) -> None:
    """A job of higher priority takes the nodes: checkpoint, requeue by Slurm, finish."""
    run_dir, training = tmp_path / "run", [TRAIN, partition(2), *options]
    job = slurm.submit("--ntasks=2", *training, "--run-dir", run_dir, cwd=tmp_path)
    _wait_until_held(run_dir)
    urgent = slurm.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 3", cwd=tmp_path
    )
    slurm.wait(job, "PENDING")
    assert f"stopping after epoch {HELD}: SIGTERM" in slurm.log(job)
    assert (run_dir / "checkpoints" / f"epoch-{HELD:06d}.h5").exists()
    assert len(_epochs(run_dir)) == HELD
    slurm.wait(urgent, "COMPLETED")
    slurm.release(job)
    slurm.wait(job, "COMPLETED")
    _assert_resumed(slurm, job, run_dir, undisturbed(2))


def test_scancel_leaves_no_orphaned_processes(slurm, partition, tmp_path) -> None:
    parts, run_dir = partition(2), tmp_path / "cancelled"
    command = [TRAIN, parts, "--hidden", 16, "--epochs", 1000000, "--run-dir", run_dir]
    job = slurm.submit("--ntasks=2", *command, cwd=tmp_path)
    wait_for(lambda: len(_epochs(run_dir)) > 3, PATIENCE, "3 epochs")
    assert len(list(_processes(str(run_dir)))) >= 4  # two ranks, srun, the batch shell
    slurm.run("scancel", job)
    wait_for(lambda: not list(_processes(str(run_dir))), PATIENCE, "the end of all processes")
    slurm.wait(job, "CANCELLED")
    time.sleep(1)
    assert slurm.field(job, "Restarts") == "0" and slurm.state(job) == "CANCELLED"
