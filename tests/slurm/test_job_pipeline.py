"""jobs/pipeline.sh: dependent jobs from a source file to predictions."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.slurm.private_slurm import PrivateSlurm

pytestmark = pytest.mark.slurm

JOBS = Path(__file__).parents[2] / "jobs"


def _ring_graph(path: Path, num_nodes: int) -> None:
    """Write a ring of nodes, each connected to four others, whose features determine the class."""
    nodes = np.arange(num_nodes)
    near = (nodes[:, None] + np.array([-2, -1, 1, 2])) % num_nodes
    labels = nodes * 3 // num_nodes
    part = np.array_split(np.random.default_rng(0).permutation(num_nodes), 3)
    np.savez(
        path,
        indptr=np.arange(0, 4 * num_nodes + 1, 4),
        indices=np.sort(near, axis=1).reshape(-1).astype(np.int32),
        features=np.eye(3, dtype=np.float32)[labels],
        labels=labels,
        train=np.sort(part[0]),
        valid=np.sort(part[1]),
        test=np.sort(part[2]),
    )


def _submit(slurm: PrivateSlurm, *args: object, cwd: Path) -> dict[str, int]:
    """Run pipeline.sh; return the printed job ids by verb."""
    printed = slurm.run(str(JOBS / "pipeline.sh"), *args, cwd=cwd)
    return {verb: int(job) for verb, job in map(str.split, printed.splitlines())}


def test_jobs_from_source_files_to_predictions(slurm: PrivateSlurm, tmp_path: Path) -> None:
    _ring_graph(tmp_path / "ring.npz", 301)
    jobs = _submit(
        slurm,
        "--ranks-per-node",
        2,
        "--convert",
        "--format npz",
        "ring.npz",
        "ring",
        "--model",
        "sage",
        "--hidden",
        8,
        "--dropout",
        0,
        "--epochs",
        15,
        "--lr",
        0.1,
        cwd=tmp_path,
    )
    assert list(jobs) == ["convert", "partition", "train", "predict"]
    slurm.wait(jobs["predict"], "COMPLETED")
    assert [slurm.state(job) for job in jobs.values()] == ["COMPLETED"] * 4
    starts = [slurm.field(job, "StartTime") for job in jobs.values()]
    ends = [slurm.field(job, "EndTime") for job in jobs.values()]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    with h5py.File(tmp_path / "runs/ring/predictions.h5") as predictions:
        classes = predictions["classes"][:]
    assert (classes == np.arange(301) * 3 // 301).mean() > 0.95


def test_a_failed_job_cancels_its_dependents(slurm: PrivateSlurm, tmp_path: Path) -> None:
    jobs = _submit(slurm, "--ranks-per-node", 2, "missing.npz", "none", cwd=tmp_path)
    slurm.wait(jobs["convert"], "FAILED")
    for verb in ("partition", "train", "predict"):
        slurm.wait(jobs[verb], "CANCELLED")
    assert slurm.field(jobs["convert"], "ExitCode") == "2:0"
    assert "missing.npz" in slurm.log(jobs["convert"])
