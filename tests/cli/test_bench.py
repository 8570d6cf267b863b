"""The verb `bench` prints every implementation that it finds, with ours at ratio 1."""

import importlib.util
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from hpcgnn.bench.peers import Case, Worker
from hpcgnn.bench.timing import Sample, compare
from tests.cli.verbs import refused

JOB = Path(__file__).parents[2] / "jobs" / "bench.sbatch"
SIZES = ["--nodes=300", "--edges=2000", "--width=8", "--heads=2", "--channels=4", "--repeat=1"]


@pytest.mark.slow
def test_the_job_script_measures_kernels_without_slurm_on_one_rank(loaded_python, tmp_path):
    file = tmp_path / "kernels.json"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PMI"))}
    kept |= {"HPCGNN_HOME": str(JOB.parents[1]), "HPCGNN_RANKS": "2"}
    kept["HPCGNN_VENV"] = str(Path(loaded_python).parents[1])
    command = ["bash", JOB, "kernels", *SIZES, "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, env=kept, timeout=240)
    assert done.returncode == 0, done.stderr
    if importlib.util.find_spec("dgl") is None:
        assert "hpcgnn: DGL is left out: No module named 'dgl'\n" in done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(done.stdout.splitlines()) == 1 + len(rows)
    ours = [row for row in rows if row["implementation"] == "hpcgnn"]
    assert len(ours) == 9
    assert all(row["ratio"] == 1 and row["seconds"] > 0 for row in ours)
    kernels = [row for row in ours if row["operation"].startswith("kernel ")]
    assert [row["num_bytes"] for row in kernels] == [
        2000 * (8 * 4 + 4) + 300 * 8 * 4 * 2,
        2000 * (8 * 4 + 2 * 4 + 4) + 300 * 8 * 4 * 2,
        2000 * (8 * 4 + 4 * 2 * 4 + 4) + 300 * 8 * 4 * 3,
        2000 * (8 * 4 + 4) + 300 * 8 * 4 * 3,
        2000 * (3 * 8 * 4 + 2 * 2 * 4 + 2 * 4) + 300 * 8 * 4 * 7,
    ]
    layers = [row for row in ours if row not in kernels]
    assert layers[0]["num_bytes"] == kernels[0]["num_bytes"] == layers[1]["num_bytes"] / 2
    assert layers[3]["num_bytes"] > 2 * layers[2]["num_bytes"] > 2 * kernels[1]["num_bytes"]
    assert all(row["share"] > 0 for row in ours)
    found = {row["implementation"] for row in rows}
    assert {"torch.sparse", "PyG GATConv"} <= found


def test_sizes_are_checked(mpirun):
    done = mpirun(0, "bench", "kernels", "--nodes", "0")
    assert done.returncode == 2
    assert done.stderr.strip() == "hpcgnn: error: --nodes must be at least 1 (found 0)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "the following arguments are required: WHAT"),
        (
            ("epoch", "--ranks", "2x0"),
            "ranks are given as RANKSxTHREADS, such as 2x1 (found '2x0')",
        ),
        (("epoch", "--model", "gat", "--hidden", "30"), "--hidden must be a multiple of --heads 4"),
        (("epoch", "--no-peers", "--degree", "1e308"), "--degree must lie in 0 .. "),
        (("epoch", "--peers", "nowhere"), "nowhere: is not a Python interpreter"),
        (("epoch", "--plot", "x.gif"), "x.gif: must end in .svg, .png, .pdf"),
        (("scale", "--weak", "g.h5"), "g.h5: --weak generates its graphs"),
        (("accuracy", "--target", "2"), "--target must be at most 1"),
        (("ring", "--sizes", "many"), "many"),
    ],
)
def test_invalid_options_are_refused(mpirun, options, words):
    done = mpirun(0, "bench", *options)
    refused(done, words)


def test_an_existing_file_is_kept(mpirun, tmp_path):
    file = tmp_path / "found.json"
    file.touch()
    refused(mpirun(0, "bench", "epoch", "--json", file), "exists already")


@pytest.mark.slow
def test_the_ring_starts_its_ranks(mpirun, tmp_path, monkeypatch):
    """A name that begins like an option reaches them."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "-ring.json"
    done = mpirun(0, "bench", "ring", "--sizes", "1KiB", "--repeat", "1", "--json=./-ring.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 ranks, transport host; ")
    content = json.loads(file.read_text())
    assert content["ranks"] == 2 and content["lanes"][0]["ring"] > 0


@pytest.mark.slow
def test_a_peer_that_runs_out_of_memory_is_skipped():
    worker = Worker("torch.sparse", Case(300, 2000, 8, 2, 4))
    operation = worker.operations[0]
    time_it = worker.timer(operation)
    assert len(time_it(3).seconds) == 3
    os.kill(worker.process.pid, signal.SIGKILL)  # like the kernel's OOM killer
    timers = {"hpcgnn": lambda repeat: Sample([1.0] * repeat), "theirs": time_it}
    ours, theirs = compare(operation, timers, 2, "hpcgnn", in_turns=True)
    assert (ours.seconds, ours.ratio) == (1.0, 1.0)
    assert theirs.seconds is None and theirs.ratio is None
    worker.close()
