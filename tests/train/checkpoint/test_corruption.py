"""Random damage to a checkpoint is refused in one line, or provably changed nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.train.checkpoint.file import Checkpoint, read, write, write_sharded
from hpcgnn.train.checkpoint.rows import read_sharded
from hpcgnn.train.config import Config
from tests.storage.read.test_corruption import CASES, sweep

NODES = np.array([7, 2, 9, 4])
PROGRESS = {"best": 0.5, "best_epoch": 2, "test_at_best": None, "waited": 0, "evaluated": 3}


def make(path: Path, comm, sharded: bool) -> None:
    """Return a checkpoint like those of training, with rows of `NODES` if `sharded`."""
    rng = np.random.default_rng(0)
    arrays = {
        "model/stack.convs.0.lin_l.weight": rng.normal(size=(8, 5)).astype(np.float32),
        "model/task:count": np.ones(1, np.int64),
        "optimizer/stack.convs.0.lin_l.weight/exp_avg": np.ones((8, 5), np.float32),
        "optimizer/stack.convs.0.lin_l.weight/step": np.full(1, 3, np.float32),
    }
    rows = {"ids": NODES, "model.inputs.weight": rng.normal(size=(4, 3)).astype(np.float32)}
    checkpoint = Checkpoint(
        3,
        Config.of(model="own"),
        "f" * 16,
        1,
        dict(PROGRESS),
        arrays,
        rows if sharded else {},
        task={"kind": "own", "metric": "accuracy"},
    )
    if sharded:
        write_sharded(path, checkpoint, comm)
    else:
        write(path, checkpoint)


def content(path: Path) -> dict[str, object]:
    """Return the whole content of a checkpoint, including its sharded rows."""
    found = read(path)
    sharded = read_sharded(path, NODES) if path.name.startswith("sharded") else {}
    return asdict(found) | {f"sharded {name}": rows for name, rows in sharded.items()}


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_corrupted_checkpoints_are_refused(comm, tmp_path, kind):
    path = tmp_path / f"{kind}.h5"
    make(path, comm, kind == "sharded")
    assert sweep(path, content, seed=5) > CASES / 2
