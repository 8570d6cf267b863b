"""One process without an MPI library: everything works except other ranks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
from hpcgnn.cli.main import main
for line in '''generate sbm g.h5 --nodes 300 --degree 8
partition g.h5 --method random -o g.p1.h5
train g.p1.h5 --epochs 2 --hidden 8 --run-dir run
predict g.p1.h5 run -o out.csv
report run --text
info g.h5
plan g.p1.h5
convert edges.txt c.h5
partition c.h5 --parts 2 -o c.p2.h5
jobs .'''.splitlines():
    status = main(line.split())
    assert status == 0, line
assert main("doctor".split()) == 1
assert main("train c.p2.h5".split()) == 2
"""


def hidden(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "PMIX_", "OMPI_"))}
    return kept | {"MPI4PY_LIBMPI": "/no/libmpi.so", "OMP_NUM_THREADS": "1"} | more


@pytest.mark.slow
def test_all_verbs_work_in_one_process(loaded_python, tmp_path):
    (tmp_path / "edges.txt").write_text("".join(f"{i} {(i * 7 + 1) % 50}\n" for i in range(50)))
    done = subprocess.run(
        [loaded_python, "-P", "-c", SCRIPT],
        cwd=tmp_path,
        env=hidden(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 301
    assert "no MPI, so one process at a time: pip install mpich" in done.stdout
    assert "auto takes" in done.stdout and (tmp_path / "jobs/train.sbatch").is_file()
    refusal = done.stderr.splitlines()[-1]
    assert "start 2 ranks (`mpiexec -n 2 ...`), but MPI is not installed: pip install" in refusal


def test_communicators_are_refused_when_mpi_was_not_started(loaded_python):
    script = "from mpi4py import MPI; import hpcgnn; hpcgnn.load_partition('g.h5', MPI.COMM_SELF)"
    done = subprocess.run(
        [loaded_python, "-P", "-c", script],
        env={**os.environ, "HPCGNN_MPI": "none"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    line = done.stderr.splitlines()[-1]
    assert "comm must be a Communicator" in line and "HPCGNN_MPI=none" in line


def test_several_processes_are_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hpcgnn", "train", "g.h5"],
        cwd=tmp_path,
        env=hidden(PMI_RANK="0", PMI_SIZE="2"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("hpcgnn: error: no MPI: pip install mpich")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ("partition", "bench"))
def test_help_loads_no_mpi(verb):
    script = (
        "import sys; from hpcgnn.cli.main import main; "
        f"status = main(['{verb}', '--help']); sys.exit(status or 'mpi4py' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=hidden(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: hpcgnn {verb}" in done.stdout
