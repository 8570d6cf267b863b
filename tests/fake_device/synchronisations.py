"""`python -m tests.fake_device.synchronisations`: how often an epoch makes the host wait.

It waits where it asks for a number that the GPU computes. At most twice an epoch, for the loss and
for the gradients, whatever the layers; the fake device counts.
"""

from __future__ import annotations

import sys

from tests.fake_device import device_guard

device_guard.load()

import torch  # noqa: E402

import hpcgnn  # noqa: E402
from hpcgnn import nn  # noqa: E402
from hpcgnn.comm import world  # noqa: E402
from hpcgnn.comm.communicator import Communicator  # noqa: E402
from hpcgnn.comm.device import pick_device  # noqa: E402
from hpcgnn.comm.transport.choice import choose_transport  # noqa: E402
from tests.fake_device import main as fake_device  # noqa: E402
from tests.fake_device.tensors import FakeDevice  # noqa: E402
from tests.graphs import distribute, random_graph  # noqa: E402

MOST = 2
LAYERS = {
    "gcn": lambda: nn.GCNConv(5, 5),
    "sage": lambda: nn.SAGEConv(5, 5),
    "gat": lambda: nn.GATConv(5, 5, dropout=0.3),
    "gatv2": lambda: nn.GATv2Conv(5, 5, dropout=0.3),
    "gin": lambda: nn.GINConv(torch.nn.Linear(5, 5)),
    "appnp": lambda: nn.APPNP(2, 0.1),
}


def waits(comm: Communicator, name: str, device: torch.device) -> list[str]:
    """What the host waited for in the third epoch of three layers with dropout between."""
    graph = distribute(random_graph(40, 160), comm, halo_buffer=4096)
    graph.ring.transport = choose_transport(comm, device)
    graph = graph.to(device)
    torch.manual_seed(0)
    layers = [LAYERS[name]().to(device) for _ in range(3)]
    model = torch.nn.ModuleList([torch.nn.Linear(5, 5).to(device), *layers])
    dropout = nn.Dropout(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found: list[str] = []
    for epoch in range(1, 4):
        FakeDevice.waits.clear()
        graph.set_epoch(epoch)
        optimizer.zero_grad()
        x = model[0](graph.features)
        for layer in layers:
            x = dropout(graph, layer(graph, x).relu())
        loss = x.square().sum()
        loss.backward()
        hpcgnn.sum_gradients(model, comm)
        optimizer.step()
        comm.allreduce(float(loss.detach()))
        found = list(FakeDevice.waits)
    return found


def count(comm: Communicator) -> int:
    """1 where an epoch waits too often, which is printed."""
    device, wrong = pick_device(comm, "cuda"), 0
    for name in LAYERS:
        found = waits(comm, name, device)
        if not 1 <= len(found) <= MOST:
            wrong = 1
            print(f"rank {comm.rank}: {name} waits {len(found)} times: {found}", file=sys.stderr)
    return wrong


if __name__ == "__main__":
    fake_device.start()
    with FakeDevice():
        sys.exit(world.run(count))
