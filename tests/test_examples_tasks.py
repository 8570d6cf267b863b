"""The examples of tasks run on the ranks of the test, as their first lines show."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.cli import generate, partition
from tests.cli.test_tasks import converted
from tests.cli.verbs import call

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.mpi


def run(name: str, *arguments: object, **options: object) -> None:
    script = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")
    script["main"](*arguments, **options)


def write_edges(folder: Path, count: int, groups: int) -> None:
    """Write `edges.csv`, mostly within groups, and `x.npy`; ids of nodes start at 500."""
    rng = np.random.default_rng(count)
    ends = rng.integers(0, count, (2, 8 * count))
    ends = ends[:, (ends[0] % groups == ends[1] % groups) | (rng.random(8 * count) < 0.05)]
    ends = np.concatenate(
        [ends, np.stack([np.arange(count), (np.arange(count) + groups) % count])], 1
    )
    np.savetxt(folder / "edges.csv", 500 + ends.T, "%d", ",")
    np.save(folder / "ids.npy", 500 + np.arange(count))
    np.save(folder / "x.npy", rng.normal(size=(count, 6)).astype(np.float32))


def test_the_link_prediction_example_learns(comm, shared_path, monkeypatch):
    monkeypatch.chdir(shared_path)
    if comm.rank == 0:
        write_edges(shared_path, 40, 4)
        converted(
            "edges.csv",
            "g.h5",
            "--features",
            "x.npy",
            "--ids",
            "ids.npy",
            "--symmetrise",
            "--link-split",
            "0.8,0.1,0.1",
        )
    comm.barrier()
    call(comm, partition, "g.h5", "--method", "random", "-o", "g.p.h5")
    run("link_prediction", comm, "g.p.h5", run_dir="run", epochs=4)
    comm.barrier()
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4 and records[-1]["loss"] < records[0]["loss"]
    with Path("run/links.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(int(row["source_id"]) >= 500 for row in rows)


def test_the_new_graph_example_runs(comm, shared_path, monkeypatch):
    monkeypatch.chdir(shared_path)
    if comm.rank == 0:
        write_edges(shared_path, 35, 2)
        converted("edges.csv", "new.h5", "--features", "x.npy", "--ids", "ids.npy")
    call(
        comm,
        generate,
        "sbm",
        "old.h5",
        "--nodes",
        90,
        "--degree",
        6,
        "--classes",
        3,
        "--features",
        6,
    )
    for name in ("old", "new"):
        call(comm, partition, f"{name}.h5", "--method", "random", "-o", f"{name}.p.h5")
    run("new_graph", comm, "old.p.h5", "new.p.h5", run_dir="run", epochs=3)
    comm.barrier()
    with Path("run/new.csv").open(newline="") as file:
        ids = [int(row["original_id"]) for row in csv.DictReader(file)]
    assert ids == list(range(500, 535))


@pytest.mark.parametrize("name", ["link_prediction", "new_graph"])
def test_examples_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
