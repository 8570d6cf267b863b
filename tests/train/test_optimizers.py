"""The built-in optimizers: the same bits as torch's, without loading torch's compiler."""

from __future__ import annotations

import subprocess

import pytest
import torch

import hpcgnn
from hpcgnn.train.optimizers import PlainAdam, PlainAdamW, PlainSGD
from tests.graphs import distribute, random_graph


def trained(kind: type, **settings: float) -> list[torch.Tensor]:
    """Return the parameters after some steps, with a scheduler and a restored state."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(50, 7)) for _ in range(3)]
    optimizer = kind(parameters, lr=0.01, **settings)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for step in range(5):
        for parameter in parameters:
            parameter.grad = torch.sin(parameter.detach() * step + 1)
        optimizer.step()
        scheduler.step()
        if step == 2:
            optimizer.load_state_dict(optimizer.state_dict())
    return parameters


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (PlainAdam, torch.optim.Adam, {}),
        (PlainAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
        (PlainSGD, torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_optimizers_equal_torchs(ours, theirs, settings):
    for found, expected in zip(trained(ours, **settings), trained(theirs, **settings), strict=True):
        assert torch.equal(found, expected)


def losses_with(graph, folder, epochs: int, *, fused: bool) -> list[float]:
    """Train to `epochs`, from the folder's checkpoint if it has one; return the losses."""
    torch.manual_seed(0)

    def make(parameters: list[torch.nn.Parameter]) -> PlainAdam:
        return PlainAdam(parameters, lr=0.05, fused=fused)

    found: list[float] = []
    trainer = hpcgnn.Trainer(
        graph,
        hpcgnn.nn.SAGEConv(5, 3),
        hpcgnn.tasks.find_task(graph),
        optimizer=make,
        run_dir=folder,
        epochs=epochs,
        resume=True,
        show="nothing",
        callbacks=[lambda _, record: found.append(record["loss"])],
    )
    trainer.run()
    return found


def test_state_of_the_kernel_for_all_parameters_is_restored(comm, tmp_path):
    """Bit by bit, and by rounding where it is continued with the other kernels, or from there."""
    graph = distribute(random_graph(40, 160), comm)
    whole = losses_with(graph, tmp_path / "whole", 4, fused=True)
    for first, second in ((True, True), (True, False), (False, True)):
        folder = tmp_path / f"{first}-{second}"
        found = losses_with(graph, folder, 2, fused=first)
        found += losses_with(graph, folder, 4, fused=second)
        assert found == (whole if first and second else pytest.approx(whole, rel=1e-5))


@pytest.mark.slow
def test_no_compiler_is_loaded(loaded_python, tmp_path):
    graph, run = tmp_path / "g.h5", tmp_path / "run"
    size = ["--nodes", "60", "--degree", "4", "--features", "3", "--classes", "2"]
    commands = [
        ["generate", "sbm", str(graph), *size],
        *(
            ["train", str(graph), "--model", model, "--epochs", "1", "--run-dir", f"{run}-{model}"]
            for model in ("sage", "gat", "transformer")
        ),
    ]
    program = (
        "import sys, torch, hpcgnn.train.configured\n"
        "from hpcgnn.train.optimizers import PlainAdam\n"
        "p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)\n"
        "o = PlainAdam([p]); o.step(); o.load_state_dict(o.state_dict())\n"
        "def loaded(*names): return [n for n in names if n in sys.modules]\n"
        "print(loaded('torch._dynamo', 'sympy', 'pyarrow', 'networkx', 'rich', 'sklearn'))\n"
        "from hpcgnn.cli import main\n"
        "from hpcgnn.train.open import _repeatable\n"
        f"assert [main.main(c) for c in {commands}] == [0, 0, 0, 0]\n"
        "_repeatable()\n"
        "print(loaded('torch._dynamo', 'sympy', 'sklearn'))\n"
    )
    result = subprocess.run([loaded_python, "-c", program], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines and lines[0] == lines[-1] == "[]", (lines, result.stderr)
