"""A user's model trained on the fake device with, without and after a failed rehearsal.

Weights, losses and random numbers are the same to the bit, and only a kernel's error ends the run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

import hpcgnn
from hpcgnn import nn
from hpcgnn.comm import world
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device import pick_device
from hpcgnn.comm.transport.choice import choose_transport
from hpcgnn.errors import KernelError
from hpcgnn.tasks import find_task
from hpcgnn.train import layer_rehearsal
from tests.fake_device.tensors import FakeDevice
from tests.graphs import distribute, random_graph

WHOLE = random_graph(40, 160, seed=1)


class Net(torch.nn.Module):
    """Layers, a norm with statistics, random masks of ours and of torch, and a count of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.SAGEConv(5, 8), nn.BatchNorm(8)
        self.second = nn.GATConv(8, 3, heads=2, concat=False, dropout=0.2)
        self.dropout, self.calls = nn.Dropout(0.3), 0

    def forward(self, graph, x):
        self.calls += 1
        x = self.dropout(graph, self.norm(graph, self.first(graph, x)).relu())
        return self.second(graph, torch.nn.functional.dropout(x, 0.1, self.training))


def trained(comm: Communicator, precision: str = "fp32") -> dict[str, Any]:
    """Return all that a run of two epochs leaves."""
    device = pick_device(comm, "cuda")
    graph = distribute(WHOLE, comm)
    graph.ring.transport = choose_transport(comm, device)
    graph = graph.to(device)
    torch.manual_seed(3)
    model, losses = Net(), []
    FakeDevice.rehearsed = None
    FakeDevice.late.clear()
    with tempfile.TemporaryDirectory() as folder:
        trainer = hpcgnn.Trainer(
            graph,
            model,
            find_task(graph),
            run_dir=Path(comm.allgather(folder)[0]) / "run",
            callbacks=[lambda trainer, record: losses.append(record["loss"])],
            show="nothing",
            epochs=2,
            precision=precision,
        )
        trainer.run()
        comm.barrier()
    state = [value.cpu() for value in model.state_dict().values()]
    return {"losses": losses, "calls": model.calls, "state": [*state, torch.get_rng_state()]}


@contextmanager
def replaced(function: Any) -> Iterator[None]:
    kept, layer_rehearsal.run = layer_rehearsal.run, function
    try:
        yield
    finally:
        layer_rehearsal.run = kept


def failing(error: Exception) -> Any:
    def run(*given: Any, **options: Any) -> None:
        raise error

    return replaced(run)


def compare(comm: Communicator) -> int:
    wrong, found = [], {}
    for name, way in {
        "rehearsed": nullcontext(),
        "not rehearsed": replaced(lambda *_, **__: None),
        "a rehearsal that failed": failing(RuntimeError("no such row")),
    }.items():
        with way:
            found[name] = trained(comm)
        if name == "rehearsed" and (FakeDevice.late or not FakeDevice.rehearsed):
            wrong.append(f"loaded late: {FakeDevice.late}, not in {FakeDevice.rehearsed}")
        if name == "not rehearsed" and not FakeDevice.late:
            wrong.append("nothing is loaded late without a rehearsal")
    first = found["rehearsed"]
    for name, other in found.items():
        same = all(map(torch.equal, first["state"], other["state"]))
        if not same or any(first[key] != other[key] for key in ("losses", "calls")):
            wrong.append(f"{name}: {first['losses']} {other['losses']}, other state: {not same}")
    try:
        with failing(KernelError("spmm<float>")):
            trained(comm)
        wrong.append("a kernel that can't be loaded did not end the run")
    except KernelError:
        pass
    trained(comm, "bf16")
    if FakeDevice.late:
        wrong.append(f"loaded late in bfloat16: {FakeDevice.late}")
    for line in wrong:
        print(f"rank {comm.rank}: {line}", file=sys.stderr)
    return int(bool(wrong))


def run() -> int:
    return world.run(compare)
