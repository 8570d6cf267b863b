"""The output of `--log tensorboard`, read back by TensorBoard itself where it is installed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import hpcgnn
from hpcgnn.errors import InputError
from hpcgnn.train import tensorboard
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi


def test_numbers_of_a_record_are_logged_by_name():
    record = {
        "epoch": 3,
        "loss": 0.5,
        "train": 1.0,
        "valid": None,
        "test": 0.25,
        "metric": "accuracy",
        "time": "2026",
        "lr": 1e-3,
        "bytes_sent": {"min": 1.0, "mean": 2.0, "max": 3.0},
    }
    assert tensorboard.scalars(record) == {
        "loss": 0.5,
        "train/accuracy": 1.0,
        "test/accuracy": 0.25,
        "lr": 1e-3,
        "bytes_sent/mean": 2.0,
        "bytes_sent/max": 3.0,
    }


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        tensorboard.TensorBoard()


def test_curves_match_the_run(comm, shared_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    graph = replace(distribute(random_graph(40, 160, seed=1), comm), graph_fingerprint="f" * 16)
    model, task = hpcgnn.nn.SAGEConv(5, 3), hpcgnn.tasks.find_task(graph)
    for epochs in (2, 4):
        torch.manual_seed(0)
        hpcgnn.Trainer(
            graph,
            model,
            task,
            run_dir=shared_path / "run",
            epochs=epochs,
            resume=epochs > 2,
            callbacks=[tensorboard.TensorBoard()],
        ).run()
    comm.barrier()
    events = accumulator.EventAccumulator(str(shared_path / "run" / tensorboard.FOLDER))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
