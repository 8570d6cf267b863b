"""Comparison of every layer's output and gradients on a GPU with those on the CPU.

On the fake GPU where HPCGNN_FAKE_DEVICE names its library, else on a real one:
`python -m tests.fake_device.layers`.
"""

from __future__ import annotations

import copy
import os
import sys

import numpy as np
import torch

from hpcgnn import nn
from hpcgnn.comm import world
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.device import pick_device
from hpcgnn.comm.transport.choice import choose_transport
from hpcgnn.comm.transport.host import Transport
from hpcgnn.sar.messages import edge_features
from tests.fake_device import device_guard
from tests.graphs import Whole, distribute, local, random_graph
from tests.nn import test_edge_message_passing as states
from tests.nn import test_message_layers as message_layers
from tests.nn import test_message_passing as messages
from tests.nn.test_against_pyg import EDGES, LAYERS, MODES

FAKE = device_guard.VARIABLE in os.environ


class OnStates(torch.nn.Module):
    """Two steps with edge states, computed from the graph's features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = states.Processor(), states.Processor("mean")

    def forward(self, graph, x):
        e = edge_features(graph)
        e = x.new_zeros(0, 4) if e is None else e
        return self.second(graph, *self.first(graph, x, e))[0]


def layers() -> dict[str, tuple[torch.nn.Module, Whole]]:
    """Yield each layer with a graph that has the inputs it needs."""
    plain = random_graph(40, 160, weighted=False)
    edges = random_graph(40, 160, edge_width=3)
    relations = random_graph(40, 160, num_relations=3)
    torch.manual_seed(0)
    found = {name: (make(nn), plain) for name, make in LAYERS.items()}
    found |= {f"{name} with edge features": (make(nn), edges) for name, make in EDGES.items()}
    found["gat with dropout"] = nn.GATConv(5, 4, heads=2, dropout=0.4), plain
    found["rgcn"] = nn.RGCNConv(5, 4, 3), relations
    found["rgcn with bases"] = nn.RGCNConv(5, 4, 3, num_bases=2), relations
    for kind in (messages.Several, messages.DotProduct, messages.Isomorphism):
        found[f"messages: {kind.__name__}"] = kind(), plain
    found["messages: EdgeNetwork"] = messages.EdgeNetwork(), edges
    for name, (needs, make) in message_layers.LAYERS.items():
        found[f"messages: {name}"] = make(nn), message_layers.graph_for(needs, 40, 160)[0]
    found["transformer with dropout"] = nn.TransformerConv(5, 4, heads=2, dropout=0.4), plain
    found["states of edges"] = OnStates(), random_graph(40, 160, edge_width=4)
    return found


def results(
    layer: torch.nn.Module, whole: Whole, comm: Communicator, transport: Transport | None, mode: str
) -> dict[str, torch.Tensor]:
    """Return output and gradients, computed on the CPU, or with `transport` on the GPU."""
    graph = distribute(whole, comm, halo_buffer=4096, mode=mode)
    x = local(graph, whole.features)
    weight = local(graph, np.random.default_rng(5).normal(size=(whole.num_nodes, 64)))
    device = torch.device("cpu") if transport is None else pick_device(comm, "cuda")
    if transport is not None:
        graph.ring.transport = transport
        graph = graph.to(device)
    x = x.to(device).requires_grad_()
    layer = copy.deepcopy(layer).to(device)
    y = layer(graph, x)
    (y * weight[:, : y.shape[1]].to(y.dtype).to(device)).sum().backward()
    found = {"output": y.detach(), "x": x.grad}
    found |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {name: value.cpu() for name, value in found.items() if value is not None}


def compare(comm: Communicator) -> int:
    """Return 1 and print the layer if a layer differs."""
    transport, wrong = choose_transport(comm, pick_device(comm, "cuda")), 0
    for number, (name, (layer, whole)) in enumerate(layers().items()):
        # The fake device is slow: one mode each, as a mode is the same for layers of a kind.
        for mode in [MODES[number % len(MODES)]] if FAKE else MODES:
            expected = results(layer, whole, comm, None, mode)
            found = results(layer, whole, comm, transport, mode)
            for key, value in expected.items():
                limit = 1e-4 * max(1.0, float(value.abs().max()) if value.numel() else 0.0)
                if not torch.allclose(found[key], value, rtol=1e-4, atol=limit):
                    wrong = 1
                    print(f"rank {comm.rank}: {name}, mode {mode}: {key} differs", file=sys.stderr)
    return wrong


def run() -> int:
    return world.run(compare)


if __name__ == "__main__":
    sys.exit(run())
