"""Number of times that the host waits for the GPU in an epoch.

It waits where it reads a number that the GPU computes, and for copies from and to memory that is
not pinned. At most twice an epoch, for the loss and for the gradients, whatever the layers, the
mode and the number of ranks, hubs or none; the fake device counts. So do built-in models in the
hands of their trainer, pruned or with labels as input. And how many launches a message of attention
takes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hpcgnn
from hpcgnn import nn
from hpcgnn.comm import world
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device import pick_device
from hpcgnn.comm.device_sums import DeviceSums
from hpcgnn.comm.exchange import _DATA_TAG
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport.choice import choose_transport
from hpcgnn.comm.transport.host import Transport
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.gradients import add_up
from hpcgnn.sar import hubs
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.open import place
from hpcgnn.train.optimisation import build_optimizer
from hpcgnn.train.optimizers import PlainSGD
from tests.fake_device.tensors import FakeDevice
from tests.graphs import distribute, random_graph

MOST = 2
LAYERS = {
    "gcn": lambda width: nn.GCNConv(width, width),
    "sage": lambda width: nn.SAGEConv(width, width),
    "gat": lambda width: nn.GATConv(width, width, dropout=0.3),
    "gatv2": lambda width: nn.GATv2Conv(width, width, dropout=0.3),
    "gin": lambda width: nn.GINConv(torch.nn.Linear(width, width)),
    "appnp": lambda width: nn.APPNP(2, 0.1),
    "rgcn": lambda width: nn.RGCNConv(width, width, 3),
}
MODELS: dict[str, dict[str, Any]] = {
    "sage": {"model": "sage"},
    "gcn": {"model": "gcn", "norm": "layer"},
    "gat": {"model": "gat", "heads": 2, "attention_dropout": 0.3},
    "gatv2": {"model": "gatv2", "heads": 2, "residual": True},
    "rgcn": {"model": "rgcn", "bases": 2},
    "whole": {"model": "sage", "prune": False},
    "labels as input": {"model": "gat", "heads": 2, "labels_as_input": 0.5},
}
MODES = ("sar", "sa", "oneshot")
NARROW, WIDE = 5, 64
SMALL, LARGE = 4096, 65536  # bytes for messages: a few wide rows to each rank, and all
MOST_OF_ADAM = 2  # launches of a step, whatever the number of parameters
MOST_LAUNCHES = {"gat": (3, 8), "gatv2": (3, 8)}  # per message, forward and backward


@dataclass(frozen=True)
class Group:
    """Some of the ranks, and the transport of their messages."""

    comm: Communicator
    device: torch.device
    transport: Transport

    @classmethod
    def of(cls, comm: Communicator) -> Group:
        device = pick_device(comm, "cuda")
        return cls(comm, device, choose_transport(comm, device))


def groups(comm: Communicator) -> Iterator[Group]:
    """Yield the first rank or the group of the others, then all: with 3 ranks 1 or 2, then 3."""
    yield Group.of(Communicator(comm.mpi.Split(int(comm.rank > 0), comm.rank)))
    comm.barrier()
    yield Group.of(comm)


class Epochs:
    """A layer of a kind between others and dropout, trained on a small graph."""

    def __init__(self, group: Group, kind: str, width: int, mode: str, halo_buffer: int) -> None:
        self.comm = group.comm
        graph = distribute(GRAPH, group.comm, halo_buffer=halo_buffer, mode=mode)
        graph.ring.transport = group.transport
        self.graph: PartitionedGraph = graph.to(group.device)
        torch.manual_seed(0)
        layers = [torch.nn.Linear(5, width), LAYERS[kind](width)]
        self.model = torch.nn.ModuleList(layers).to(group.device)
        self.dropout = nn.Dropout(0.3)
        self.optimizer = PlainSGD(self.model.parameters(), lr=0.01)
        self.number = self.messages = 0
        self.sums: DeviceSums | None = None  # instead of MPI
        self.graph.ring.send = self._counted  # type: ignore[method-assign]

    def _counted(self, *given: Any) -> Any:
        self.messages += given[-1] == _DATA_TAG  # replies count with the messages that they answer
        return Ring.send(self.graph.ring, *given)

    def run(self) -> list[tuple[int, int]]:
        """Run one epoch; return the messages sent and kernels launched, forward and backward."""
        self.number += 1
        self.graph.set_epoch(self.number)
        self.optimizer.zero_grad()
        x = self.model[0](self.graph.features)
        for layer in self.model[1:]:
            x = self.dropout(self.graph, layer(self.graph, x).relu())
        loss = x.square().sum()
        taken = [self._taken()]
        loss.backward()
        taken.append(self._taken())
        if self.sums is None:
            hpcgnn.sum_gradients(self.model, self.comm)
        elif not add_up(list(self.model.parameters()), self.comm, self.sums):
            raise RuntimeError("a gradient is not finite")
        self.optimizer.step()
        self.comm.allreduce(float(loss.detach()))
        return taken

    def _taken(self) -> tuple[int, int]:
        """Return the counts since the last call."""
        found = self.messages, len(FakeDevice.launched)
        self.messages = 0
        FakeDevice.launched.clear()
        return found


GRAPH = random_graph(40, 160, num_relations=3)


def waits(group: Group, kind: str, mode: str) -> list[str]:
    """Return the operations that the host waited for in an epoch after the first."""
    epochs = Epochs(group, kind, NARROW, mode, SMALL)
    epochs.run()
    FakeDevice.waits.clear()
    epochs.run()
    return list(FakeDevice.waits)


def waits_with_sums_on_the_device(group: Group) -> list[str]:
    """Like `waits`, with gradients summed by Gloo, in place of NCCL: none of them is copied."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    epochs = Epochs(group, "gat", NARROW, "sar", SMALL)
    epochs.sums = DeviceSums.start(group.comm, torch.device("cpu"), "gloo")
    epochs.run()
    FakeDevice.waits.clear()
    epochs.run()
    found = list(FakeDevice.waits)
    epochs.sums.close()
    if any("copy" in operation for operation in found):
        raise RuntimeError(f"gradients are copied: {found}")
    return found


class WaitsOfEpochs:
    """The operations that the host waited for in each epoch of a trainer, including its record."""

    def __init__(self) -> None:
        self.found: list[list[str]] = []

    def on_epoch(self, trainer: Any, record: Any) -> None:
        self.found.append(list(FakeDevice.waits))
        FakeDevice.waits.clear()


def waits_of_model(group: Group, kind: str) -> list[str]:
    """Like `waits`, for the second epoch, which unlike the last is not evaluated."""
    graph = distribute(GRAPH, group.comm, halo_buffer=SMALL)
    graph.ring.transport = group.transport
    config = Config.of(
        hidden=8, layers=2, dropout=0.3, epochs=3, eval_every=100, device="cuda", **MODELS[kind]
    )
    counted = WaitsOfEpochs()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(group.comm.allgather(folder)[0]) / "run"
        graph = place(graph, group.device, config)
        configured_trainer(graph, config, run_dir, show="nothing", callbacks=[counted]).run()
        group.comm.barrier()
    return counted.found[1]


def launches(group: Group, kind: str) -> list[float]:
    """Return the launches per additional message, forward and backward."""
    many, few = (Epochs(group, kind, WIDE, "sar", size) for size in (SMALL, LARGE))
    found = []
    for epochs in (many, few):
        epochs.run()
        epochs._taken()
        found.append(epochs.run())
    more = [
        [group.comm.allreduce(a - b) for a, b in zip(*taken, strict=True)]
        for taken in zip(*found, strict=True)
    ]
    return [launched / messages for messages, launched in more]


def launches_of_adam(group: Group) -> list[str]:
    """Return the operations that a second step launches, for several parameters."""
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4))).to(group.device)
    optimizer = build_optimizer(Config.of(), list(model.parameters()))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        FakeDevice.launched.clear()
        optimizer.step()
    return list(FakeDevice.launched)


def count(comm: Communicator) -> int:
    """Return 1, and print it, if an epoch waits too often or a message takes too many launches."""
    wrong, everyone = 0, Group.of(comm)
    for kind, most in MOST_LAUNCHES.items():
        found = launches(everyone, kind)
        if any(number > limit for number, limit in zip(found, most, strict=True)):
            wrong = 1
            print(f"rank {comm.rank}: {kind} launches {found} kernels a message", file=sys.stderr)
    launched = launches_of_adam(everyone)
    if len(launched) > MOST_OF_ADAM:
        wrong = 1
        print(f"rank {comm.rank}: a step of Adam launches {launched}", file=sys.stderr)
    with everything_a_hub():
        return max(wrong, count_waits(comm))


@contextmanager
def everything_a_hub() -> Iterator[None]:
    kept = hubs.MANY, hubs.SETTLED
    hubs.MANY = hubs.SETTLED = 1
    try:
        yield
    finally:
        hubs.MANY, hubs.SETTLED = kept


def count_waits(comm: Communicator) -> int:
    wrong = 0
    for group in groups(comm):
        counts: dict[str, Callable[[], list[str]]]
        if group.comm.size == comm.size:
            pairs = [(kind, mode) for kind in LAYERS for mode in MODES]
            counts = {f"{k}, mode {m}": partial(waits, group, k, m) for k, m in pairs}
            counts["sums on the device"] = partial(waits_with_sums_on_the_device, group)
        else:
            counts = {f"model {kind}": partial(waits_of_model, group, kind) for kind in MODELS}
        for what, counted in counts.items():
            found = counted()
            if not 1 <= len(found) <= MOST:
                wrong = 1
                where = f"rank {group.comm.rank} of {group.comm.size}: {what}"
                print(f"{where}, waits {len(found)} times: {found}", file=sys.stderr)
    return wrong


def run() -> int:
    return world.run(count)
