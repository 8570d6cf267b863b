"""Resuming on the command line: other partitions and numbers of ranks work, other graphs do not."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Mpirun = Callable[..., subprocess.CompletedProcess[str]]
OPTIONS = ["--model", "sage", "--layers", 2, "--hidden", 8, "--checkpoint-every", 2]


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of the error."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hpcgnn: error:")]
    return line


@pytest.fixture
def graph(mpirun: Mpirun, tmp_path: Path) -> Callable[[int, int, str], Path]:
    """Return `graph(0, 2, "block")`: the graph of seed 0 in two parts."""

    def make(seed: int, parts: int, method: str) -> Path:
        whole, path = tmp_path / f"g{seed}.h5", tmp_path / f"g{seed}.{method}.p{parts}.h5"
        if not whole.exists():
            size = ["--nodes", 200, "--degree", 6, "--features", 5, "--classes", 3]
            ok(mpirun(0, "generate", "sbm", whole, *size, "--seed", seed))
        if not path.exists():
            ok(mpirun(0, "partition", whole, "--parts", parts, "--method", method, "-o", path))
        return path

    return make


def losses(run_dir: Path) -> list[tuple[int, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(record["epoch"], record["loss"]) for record in map(json.loads, lines)]


def test_other_partitions_are_accepted_and_other_graphs_refused(mpirun, graph, tmp_path):
    block, first = graph(0, 2, "block"), tmp_path / "run"
    ok(mpirun(2, "train", block, "--run-dir", first, *OPTIONS, "--epochs", 4))
    resumed = [*OPTIONS, "--epochs", 6, "--resume", "--run-dir"]
    runs = {}
    for ranks, processes, method in ((2, 2, "random"), (1, 0, "block")):
        runs[ranks] = tmp_path / f"run{ranks}"
        shutil.copytree(first, runs[ranks])
        out = ok(mpirun(processes, "train", graph(0, ranks, method), *resumed, runs[ranks]))
        assert "resuming after epoch 4 from " in out
    two, one = losses(runs[2]), losses(runs[1])
    assert [epoch for epoch, _ in two] == [epoch for epoch, _ in one] == [1, 2, 3, 4, 5, 6]
    assert two[:4] == one[:4] == losses(first)
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)

    newest, config = first / "checkpoints" / "epoch-000004.h5", (first / "config.json").read_text()
    line = refused(mpirun(0, "train", graph(1, 1, "block"), *resumed, first))
    assert line.startswith(f"hpcgnn: error: {newest}: belongs to another graph (")
    line = refused(mpirun(0, "train", graph(0, 1, "block"), *resumed, first, "--hidden", 16))
    assert (
        f"{newest}: was trained with --hidden 8, not --hidden 16: use the former values, or" in line
    )
    line = refused(mpirun(0, "train", graph(0, 1, "block"), *resumed, first, "--optimizer", "sgd"))
    assert "--optimizer adam, not --optimizer sgd" in line
    fresh = [*OPTIONS, "--epochs", 6, "--run-dir", first]
    line = refused(mpirun(0, "train", graph(0, 1, "block"), *fresh))
    best = shutil.copytree(first, tmp_path / "mixed") / "checkpoints" / "best.h5"
    another = [*OPTIONS, "--seed", 3, "--epochs", 1, "--run-dir", tmp_path / "other"]
    ok(mpirun(0, "train", graph(0, 1, "block"), *another))
    shutil.copy(tmp_path / "other" / "checkpoints" / "best.h5", best)
    other = refused(mpirun(0, "train", graph(0, 1, "block"), *resumed, tmp_path / "mixed"))
    assert f"{best}: was trained with --seed 3, not --seed 0" in other
    assert f"{first}: holds the checkpoints of a run: --resume continues it" in line
    assert losses(first) == two[:4]
    assert (first / "config.json").read_text() == config
