"""Features in host memory give the same results as features on the device."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from hpcgnn import nn
from hpcgnn.graph.features import HostRows
from hpcgnn.models.stack import Stack
from tests.comm.transport.test_transport import Sluggish
from tests.graphs import distribute, random_graph

CONVOLUTIONS = {
    "gcn": lambda a, b, layer: nn.GCNConv(a, b),
    "sage": lambda a, b, layer: nn.SAGEConv(a, b),
    "gat": lambda a, b, layer: nn.GATConv(a, b // 2, heads=2),
    "gatv2": lambda a, b, layer: nn.GATv2Conv(a, b // 2, heads=2),
    "transformer": lambda a, b, layer: nn.TransformerConv(a, b // 2, heads=2),
}


@pytest.mark.mpi
# The first layers of two products, and of one, in slabs of every size.
@pytest.mark.parametrize(
    ("name", "slab_rows"),
    [*((name, 7) for name in CONVOLUTIONS), *itertools.product(("sage", "gcn"), (1, 1000))],
)
def test_models_with_features_on_the_host_give_the_same_results(comm, name, slab_rows):
    graph = distribute(random_graph(60, 300), comm)
    features = graph.features
    torch.manual_seed(0)
    model = Stack(5, 8, 4, 2, CONVOLUTIONS[name], dropout=0.2, input_dropout=0.3)
    results = []
    for rows in (features, HostRows(features, Sluggish((1, 3)), slab_bytes=slab_rows * 20)):
        one = copy.deepcopy(model)
        graph = replace(graph, features=rows)
        y = one(graph, rows)
        y.square().sum().backward()
        grads = [comm.allreduce(parameter.grad) for parameter in one.parameters()]
        results.append([y.detach(), *grads])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


SUMMED = {
    "gcn": lambda: nn.GCNConv(37, 4),
    "sage": lambda: nn.SAGEConv(37, 4),
    "sgc": lambda: nn.SGConv(37, 4, K=3),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", SUMMED)
def test_sums_of_features_on_the_host_are_kept(comm, name, monkeypatch):
    """They equal those of features on the device, and are computed once, few columns at a time."""
    graph = distribute(random_graph(60, 300, width=37), comm)
    taken, columns = [], HostRows.columns
    monkeypatch.setattr(
        HostRows,
        "columns",
        lambda rows, chosen, on: taken.append(chosen) or columns(rows, chosen, on),
    )
    conv = SUMMED[name]()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    expected = conv(graph, graph.features)
    host = replace(graph, features=HostRows(graph.features.clone(), Sluggish((1, 3))))
    for _ in range(3):
        torch.testing.assert_close(conv(host, host.features), expected)
    assert [(chosen.start, chosen.stop) for chosen in taken] == [(0, 16), (16, 32), (32, 48)]
    host.features.rows_NF[:] += 1
    conv(host, host.features)
    assert len(taken) == 6


@pytest.mark.parametrize(("count", "width"), [(0, 3), (4, 0), (1, 1)])
def test_empty_and_tiny_features(count, width):
    rows = HostRows(torch.ones(count, width), Sluggish((1,)), slab_bytes=1)
    weight = torch.ones(2, width)
    assert torch.equal(rows.times(weight), torch.full((count, 2), float(width)))
    assert torch.equal(
        rows.weight_gradient(torch.ones(count, 2)), torch.full((2, width), float(count))
    )


def test_gradients_of_very_many_slabs_stay_exact():
    count = 4000
    rows = HostRows(torch.full((count, 2), 0.3), Sluggish((1,)), slab_bytes=8)
    found = rows.weight_gradient(torch.full((count, 3), 0.7))
    exact = count * torch.tensor(0.3) * torch.tensor(0.7).double()
    assert float((found / exact - 1).abs().max()) < 1e-6


def test_a_slab_is_not_overwritten_while_kernels_may_read_it():
    """At most two slabs: the copy of one waits for the kernels of the one before the last."""
    copier = Recorder()
    rows = HostRows(torch.arange(10.0)[:, None], copier, slab_bytes=8)
    seen = [slab.clone() for _, slab in rows.slabs()]
    assert torch.equal(torch.cat(seen), rows.rows_NF)
    assert copier.waited == [0, 1, 2, 3, 4]


class Recorder(Sluggish):
    """A recorder that numbers its marks; `waited` holds those that copies waited for."""

    def __init__(self):
        super().__init__((1,))
        self.marks, self.waited = 0, []

    def mark(self):
        self.marks += 1
        return self.marks - 1

    def to_near(self, near, wire, after):
        self.waited.append(after)
        return super().to_near(near, wire, after)
