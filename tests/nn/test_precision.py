"""bfloat16 compared with float32: close, half the bytes, and the same with the kernels of GPUs."""

from __future__ import annotations

import copy

import pytest
import torch

from hpcgnn import nn
from hpcgnn.comm.transport.staged import StagedTransport
from hpcgnn.sar import products
from hpcgnn.train.optimisation import arithmetic
from tests.comm.transport.test_transport import Sluggish
from tests.graphs import collect, distribute, local, random_graph
from tests.kernels.conftest import emulated  # noqa: F401

pytestmark = pytest.mark.mpi
LAYERS = {
    "gcn": lambda: nn.GCNConv(16, 12),
    "gcn wide": lambda: nn.GCNConv(16, 32),
    "sage": lambda: nn.SAGEConv(16, 12),
    "sage max": lambda: nn.SAGEConv(16, 12, aggr="max"),
    "gat": lambda: nn.GATConv(16, 7, heads=3),
    "gat edges": lambda: nn.GATConv(16, 7, heads=3, edge_dim=2),
    "gatv2": lambda: nn.GATv2Conv(16, 8, heads=2),
    "gatv2 edges": lambda: nn.GATv2Conv(16, 8, heads=2, edge_dim=2),
    "rgcn": lambda: nn.RGCNConv(16, 12, 3, num_bases=2),
    "gin": lambda: nn.GINConv(nn.Linear(16, 12), train_eps=True),
}
MESSAGES = {
    "transformer": lambda: nn.TransformerConv(16, 6, heads=2, edge_dim=2),
    "gine": lambda: nn.GINEConv(nn.Linear(16, 12), edge_dim=2),
    "pna": lambda: nn.PNAConv(16, 12, ["mean", "std"], ["amplification"], torch.ones(9), 2),
    "rgat": lambda: nn.RGATConv(16, 6, 3, heads=2),
    "gen": lambda: nn.GENConv(16, 12, norm="layer"),
}
EDGES = {"edge_width": 2}
GRAPHS = {
    "gat edges": EDGES,
    "gatv2 edges": EDGES,
    "transformer": EDGES,
    "gine": EDGES,
    "pna": EDGES,
    "rgcn": {"num_relations": 3},
    "rgat": {"num_relations": 3},
}
CPU = torch.device("cpu")


class Around(torch.nn.Module):
    """A layer between products, a norm and a dropout, as in a model."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(1)
        self.before, self.layer = nn.Linear(5, 16), layer()
        width = self.layer.bias.shape[0] if getattr(self.layer, "bias", None) is not None else 12
        self.norm, self.drop = nn.BatchNorm(width), nn.Dropout(0.3, 1)
        self.after = nn.Linear(width, 3)

    def forward(self, graph, x):
        y = self.layer(graph, self.before(x))
        return self.after(self.drop(graph, self.norm(graph, y))).float()


def run(model, graph, whole, precision):
    comm, model = graph.ring.comm, copy.deepcopy(model)
    before, x = graph.ring.bytes_sent, local(graph, whole.features).requires_grad_()
    with arithmetic(precision, CPU):
        y = model(graph, x)
    wanted = torch.randn(whole.num_nodes, 3, generator=torch.manual_seed(2))
    ((y - local(graph, wanted)) ** 2).sum().backward()
    rows = collect(graph, torch.cat([y, x.grad], dim=1)).split([3, 5], dim=1)
    grads = {
        name: comm.allreduce(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    sent = comm.allreduce(graph.ring.bytes_sent - before)
    return {"y": rows[0].detach(), "x": rows[1], **grads}, sent


def far_ones(found, exact, limit):
    """Return results that differ by over `limit` of their size, 4 times that for biases."""
    least = max(float(value.norm()) for value in exact.values()) / 100
    sizes = {name: max(float(value.norm()), least) for name, value in exact.items()}
    apart = {name: float((found[name] - exact[name]).norm()) / sizes[name] for name in exact}
    return {k: v for k, v in apart.items() if v > (4 * limit if "bias" in k else limit)}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sar", "sa"])
@pytest.mark.parametrize("name", [*LAYERS, *MESSAGES])
def test_layers_in_bfloat16_are_close_and_send_half_the_bytes(comm, name, mode):
    whole = random_graph(400, 3000, **GRAPHS.get(name, {}))
    model = Around((LAYERS | MESSAGES)[name])
    graph = distribute(whole, comm, halo_buffer=1 << 14, mode=mode)
    exact, sent = run(model, graph, whole, "fp32")
    short_, sent_short = run(model, graph, whole, "bf16")
    assert all(value.dtype == torch.float32 for value in short_.values())
    assert not far_ones(short_, exact, 0.1)
    # Products may stay in float32; GATv2 and maxima then round only messages.
    assert comm.size == 1 or not torch.equal(short_["y"], exact["y"])
    assert sent_short < 0.65 * sent or comm.size == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sar", "sa"])
# The gradients of "gat edges" are too noisy on so small a graph.
@pytest.mark.parametrize("name", [n for n in LAYERS if n != "gat edges"])
def test_emulated_gpu_kernels_give_the_same_results(comm, name, mode, emulated, monkeypatch):  # noqa: F811
    """GPU kernels on 16-bit rows, run by the emulator, with staged messages."""
    if comm.size != 2:
        pytest.skip("one rank sends no message, and it is slow enough on two")
    whole = random_graph(60, 300, **GRAPHS.get(name, {}))
    model = Around(LAYERS[name])
    graph = distribute(whole, comm, halo_buffer=1 << 14, mode=mode)
    exact, _ = run(model, graph, whole, "fp32")
    graph.ring.transport = StagedTransport(Sluggish((1, 4)))
    graph.ring.release()
    monkeypatch.setattr(products, "kernels_read_16_bit", lambda device: True)
    found, _ = run(model, graph, whole, "bf16")
    assert not far_ones(found, exact, 0.1)
    assert any("bf16" in expression for expression in emulated.launched)
