"""`jobs/sweep.sbatch`: the n-th task trains with the n-th file of the list, also outside Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcgnn.train.journal import config_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_array_task_uses_its_line_of_the_list(tmp_path, mpirun):
    made = mpirun(
        0,
        "generate",
        "sbm",
        tmp_path / "g.h5",
        "--nodes",
        60,
        "--degree",
        4,
        "--classes",
        3,
        "--features",
        5,
    )
    assert made.returncode == 0
    mpirun(0, "partition", tmp_path / "g.h5", "--method", "block", "-o", tmp_path / "p.h5")
    for name, width in (("small", 4), ("large", 8)):
        (tmp_path / f"{name}.toml").write_text(f"[model]\nhidden = {width}\nlayers = 2\n")
    (tmp_path / "list").write_text("small.toml\nlarge.toml\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "PMIX_", "SLURM_"))}
    kept |= {"HPCGNN_HOME": str(ROOT), "HPCGNN_VENV": sys.prefix, "HPCGNN_RANKS": "1"}

    def sweep(number: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", ROOT / "jobs" / "sweep.sbatch", "list", "p.h5", "--epochs", "1"],
            env=kept | {"SLURM_ARRAY_TASK_ID": str(number)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )

    done = sweep(2)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "sweep").iterdir()
    assert run.name == "large" and config_of(run)["hidden"] == 8
    absent = sweep(3)
    assert absent.returncode == 2 and "line 3 of list does not name a file" in absent.stderr
