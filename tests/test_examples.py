"""Each example runs on the ranks of the test as its first lines show, with the claimed results."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn import functional

import hpcgnn
from hpcgnn.cli import generate, train
from tests.cli.verbs import call
from tests.test_readme import blocks

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.mpi


def load(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


@pytest.fixture
def part(comm, shared_path) -> Path:
    graph = shared_path / "graph.h5"
    call(
        comm,
        generate,
        "sbm",
        graph,
        "--nodes",
        200,
        "--degree",
        6,
        "--classes",
        3,
        "--features",
        8,
        "--noise",
        1,
    )
    hpcgnn.partition_graph(comm, graph, method="random", out=shared_path / "part.h5")
    comm.barrier()
    return shared_path / "part.h5"


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]


@pytest.mark.parametrize("name", ["own_model", "own_task", "log_elsewhere"])
def test_examples_learn(comm, part, name):
    run_dir = part.parent / name
    load(name)["main"](comm, part, run_dir=run_dir, epochs=8)
    comm.barrier()
    found = records(run_dir)
    assert len(found) == 8 and found[-1]["loss"] < found[0]["loss"]
    if name == "own_model":
        assert found[0]["lr"] > found[-1]["lr"] and (run_dir / "predictions.h5").exists()
        call(
            comm,
            train,
            part,
            "--run-dir",
            part.parent / "c",
            "--epochs",
            1,
            "--model",
            f"{EXAMPLES / 'own_model.py'}:Net",
            "--model-args",
            "hidden=8",
        )


def test_the_models_of_the_page_on_models_train(comm, part, monkeypatch):
    program, losses = (code for _, code in blocks("python", "docs/your_model.md"))
    assert "epochs=100" in program
    monkeypatch.chdir(part.parent)
    if comm.rank == 0:
        part.rename("graph.p2.h5")
    comm.barrier()
    monkeypatch.setattr(hpcgnn, "run", lambda main: main(comm))
    names = {"smoothness": lambda graph, output: output.square().sum() / graph.num_nodes}
    names["__name__"] = "__main__"
    exec(program.replace("epochs=100", "epochs=3"), names)
    assert len(records(Path("runs/net"))) == 3 and Path("predictions.h5").exists()
    exec(losses, names)
    graph = hpcgnn.load_partition("graph.p2.h5", comm)
    given = {"losses": names["losses"], "epochs": 2, "run_dir": "runs/several"}
    hpcgnn.Trainer(graph, names["Net"](graph), hpcgnn.tasks.find_task(graph), **given).run()
    assert len(records(Path("runs/several"))) == 2


def test_a_resumed_run_continues_its_log(comm, part, monkeypatch):
    """It is one run there, by its id, with the same steps and names as the epochs here."""
    opened, steps = [], []

    class Run:
        def __init__(self, **given):
            opened.append(given["id"])
            self.id = given["id"] or "made up"

        def log(self, numbers, step):
            steps.append((step, numbers["valid/accuracy"]))

        def finish(self):
            opened.append("finished")

    there = ModuleType("wandb")
    there.__spec__, there.init = ModuleSpec("wandb", None), Run
    monkeypatch.setitem(sys.modules, "wandb", there)
    for epochs in (3, 5):
        run_dir = part.parent / "logged"
        load("log_elsewhere")["main"](comm, part, run_dir=run_dir, epochs=epochs, resume=epochs > 3)
        comm.barrier()
    first = comm.rank == 0
    assert opened == ([None, "finished", "made up", "finished"] if first else [])
    assert steps == ([(r["epoch"], r["valid"]) for r in records(run_dir)] if first else [])


def test_a_notebook_needs_no_launcher(comm, part, monkeypatch, capsys):
    if comm.size > 1:
        pytest.skip("is of one process")
    monkeypatch.setattr(sys, "argv", ["x", str(part.parent / "graph.h5")])
    load("single_process")
    assert "epoch 3 loss" in capsys.readouterr().out


def in_pyg(folder: Path) -> dict:
    """Return the ported script's `make_graph` and `Net` with PyTorch Geometric's layers."""
    text = (EXAMPLES / "moved_from_pyg.py").read_text()
    assert text.count("from hpcgnn.nn.pyg import") == 1
    (folder / "original.py").write_text(text.replace("hpcgnn.nn.pyg", "torch_geometric.nn"))
    return runpy.run_path(str(folder / "original.py"), run_name="example")


def original_losses(script: dict, data, start: dict, weight: torch.Tensor) -> list[float]:
    """Run the original script's loop on one process: 20 epochs without dropout."""
    model = script["Net"](data.num_features, 64, 2, dropout=0.0)
    model.load_state_dict(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        logits = model(data.x, data.edge_index)
        mask = data.train_mask
        loss = functional.cross_entropy(logits[mask], data.y[mask], weight=weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_pyg_script_is_ported_by_changing_its_imports(comm, shared_path, tmp_path):
    pytest.importorskip("torch_geometric")
    moved, original = load("moved_from_pyg"), in_pyg(tmp_path)
    data = moved["make_graph"](nodes=1000)
    torch.manual_seed(3)
    model = moved["Net"](data.num_features, 64, 2, dropout=0.0)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    weight = 1 / torch.bincount(data.y[data.train_mask]).float()
    expected = original_losses(original, data, start, weight)
    if comm.rank == 0:
        hpcgnn.from_pyg(data, shared_path / "graph.h5")
    comm.barrier()
    made = hpcgnn.partition_graph(
        comm, shared_path / "graph.h5", method="random", out=shared_path / "p.h5"
    )
    graph = hpcgnn.load_partition(made["file"], comm)
    hpcgnn.convert_norms(model, graph)
    task = hpcgnn.tasks.MultiClass(2, metric="auc", class_weights=tuple(weight.tolist()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    trainer = hpcgnn.Trainer(
        graph,
        model,
        task,
        optimizer=optimizer,
        scheduler=schedule,
        epochs=20,
        clip_norm=1.0,
        run_dir=shared_path / "run",
    )
    trainer.run()
    comm.barrier()
    found = [record["loss"] for record in records(shared_path / "run")]
    # Adam amplifies rounding from step to step, by amounts that differ between processors.
    np.testing.assert_allclose(found[:12], expected[:12], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert expected[-1] < 0.9 * expected[0]


def test_the_ported_script_runs(comm, shared_path, tmp_path):
    pytest.importorskip("torch_geometric")
    text = (EXAMPLES / "moved_from_pyg.py").read_text()
    assert "epochs=100, patience=20" in text
    brief = tmp_path / "brief.py"
    brief.write_text(text.replace("epochs=100, patience=20", "epochs=20, patience=4"))
    script = runpy.run_path(str(brief), run_name="example")
    small = script["make_graph"](nodes=200)
    script["main"].__globals__["make_graph"] = lambda: small
    script["main"](comm, str(shared_path))
    comm.barrier()
    lines = (shared_path / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("original_id,class,")
    assert [int(line.split(",")[0]) for line in lines[1:]] == small.original_id.tolist()
    assert 4 < len(records(shared_path / "run")) <= 20
