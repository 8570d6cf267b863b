"""Runs that machines lack memory for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.cli import partition, train
from hpcgnn.comm import shortage
from hpcgnn.storage.write.graph_writer import GraphWriter
from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import estimate
from hpcgnn.train.plan.file_shapes import shapes_of_file
from tests.cli.verbs import call
from tests.graphs import random_graph


def _peak(path: Path, ranks: int, **settings: object) -> int:
    shape_at, _, _ = shapes_of_file(path, Config.of(**settings))
    return estimate(shape_at(ranks), Config.of(**settings)).peak


@pytest.mark.mpi
def test_a_lack_of_memory_is_told_before_the_run(comm, shared_path, monkeypatch, capfd):
    path, parts = shared_path / "g.h5", shared_path / "g.p.h5"
    if comm.rank == 0:
        whole = random_graph(600, 3000, width=24, symmetric=True)
        with GraphWriter(path, num_nodes=600, config={}) as writer:
            writer.append_rows(np.bincount(whole.target, minlength=600), whole.source)
            writer.append_features(whole.features)
            writer.append_labels(whole.labels)
            writer.append_split(whole.split[:, None])
    comm.barrier()
    call(comm, partition, path, "--parts", comm.size, "--method", "random", "-o", parts)
    settings = {"model": "sage", "layers": 2, "hidden": 8}
    full = _peak(parts, comm.size, **settings)
    lean = _peak(parts, comm.size, **settings, cache_first=False)
    assert lean < full
    monkeypatch.setattr(shortage.socket, "gethostname", lambda: f"node{comm.rank}")
    options = ("--model", "sage", "--layers", 2, "--hidden", 8, "--epochs", 1)
    enough, other = "there is enough with --no-cache-first", "--recompute"
    for room, said in ((full, None), (lean, enough), (lean // 2, other)):
        monkeypatch.setattr(shortage, "available_memory", lambda room=room: room)
        capfd.readouterr()
        call(comm, train, parts, *options, "--run-dir", shared_path / f"run{room}")
        lines = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
        assert len(lines) == (said is not None and comm.rank == 0), lines
        if lines:
            assert re.match(r"hpcgnn: warning: the ranks .* need [\d.]+ MB on node\d", lines[0])
            assert said in lines[0]
