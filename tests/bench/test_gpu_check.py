"""jobs/gpu_check.sh, with parts that need no GPU."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "jobs" / "gpu_check.sh"


def check(python: str, out: Path, *parts: str, **given: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PMI"))}
    kept |= {"PYTHON": python, "OUT": str(out), "DEVICE": "cpu", **given}
    command = ["bash", SCRIPT, *parts]
    return subprocess.run(command, capture_output=True, text=True, env=kept, timeout=240)


@pytest.mark.slow
def test_a_table_shows_the_results(loaded_python, tmp_path):
    sizes = {"WIDTHS": "8 16", "NODES": "300", "EDGES": "2000", "BASE": str(SCRIPT.parents[1])}
    done = check(loaded_python, tmp_path, "speed", **sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    *both, last = done.stdout.split("\n\n")[-1].splitlines()
    assert last.split()[:2] == ["speed", "ok"]
    rows = [row for row in both if not row.endswith("(BASE)")]
    assert len(both) == 2 * len(rows)
    sums = [row for row in rows if row.startswith("kernel sum, width ")]
    assert [row.split()[3] for row in sums] == ["8,", "16,"]
    assert all(" ms " in row and row.endswith(" of a copy") for row in sums)
    assert sum("kernel GATv2" in row for row in rows) == 4
    assert (tmp_path / "speed.log").read_text().count("torch.sparse") == 0


def test_parts_end_within_their_limit_and_unknown_parts_are_refused(tmp_path):
    done = check(sys.executable, tmp_path, "speed", LIMIT="1")
    assert done.returncode == 1
    assert "speed      out of time" in done.stdout.splitlines()[-1]
    old = tmp_path / "counters-8.json"
    old.write_text("{}")
    done = check(
        sys.executable, tmp_path, "speed", "counters", BUDGET="1", LIMIT="1", PATH="/usr/bin:/bin"
    )
    assert done.returncode == 1 and not old.exists()
    assert "counters   no time left" in (tmp_path / "table.txt").read_text()
    (tmp_path / "speed-8.json").write_text('{"rows": [')
    command = [sys.executable, SCRIPT.with_suffix(".py"), tmp_path, "speed"]
    assert "speed-8.json is incomplete" in subprocess.check_output(command, text=True)
    done = check(sys.executable, tmp_path, "sped")
    assert done.returncode == 2 and "sped: no such part" in done.stderr


def test_a_profile_is_summed_up_by_kernel():
    made = [("a", 0, 30), ("b", 20, 30), ("a", 100, 10)]  # the first two overlap
    events = [
        {"ph": "X", "cat": "kernel", "name": f"at::native::{name}", "ts": start, "dur": lasts}
        for name, start, lasts in made
    ]
    events += [{"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 8}]
    events += [{"ph": "i", "cat": "kernel", "name": "no duration", "ts": 5}]
    summed = runpy.run_path(str(SCRIPT.with_name("gpu_profile.py")))["lines"]
    first, *kernels = summed(events[::-1], 2)
    assert first.startswith("an epoch: busy 0.03 of 0.06 ms, 2 kernels and copies, 0 calls")
    assert [line.split() for line in kernels] == [
        ["0.020", "ms", "1.0", "x", "a"],
        ["0.015", "ms", "0.5", "x", "b"],
    ]
    assert "on a GPU?" in next(iter(summed([], 2)))
