"""Features in host memory give what features on the device give."""

from __future__ import annotations

import copy
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
@pytest.mark.parametrize("slab_rows", [1, 7, 1000])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_models_agree(comm, name, slab_rows):
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


@pytest.mark.parametrize(("count", "width"), [(0, 3), (4, 0), (1, 1)])
def test_empty_and_tiny(count, width):
    rows = HostRows(torch.ones(count, width), Sluggish((1,)), slab_bytes=1)
    weight = torch.ones(2, width)
    assert torch.equal(rows.times(weight), torch.full((count, 2), float(width)))
    assert torch.equal(
        rows.weight_gradient(torch.ones(count, 2)), torch.full((2, width), float(count))
    )


def test_a_slab_is_not_overwritten_while_kernels_may_read_it():
    """At most two slabs: the copy of one waits for the kernels of the one before the last."""
    copier = Recorder()
    rows = HostRows(torch.arange(10.0)[:, None], copier, slab_bytes=8)
    seen = [slab.clone() for _, slab in rows.slabs()]
    assert torch.equal(torch.cat(seen), rows.rows_NF)
    assert copier.waited == [0, 1, 2, 3, 4]


class Recorder(Sluggish):
    """Numbers its marks; `waited` are those that copies waited for."""

    def __init__(self):
        super().__init__((1,))
        self.marks, self.waited = 0, []

    def mark(self):
        self.marks += 1
        return self.marks - 1

    def to_near(self, near, wire, after):
        self.waited.append(after)
        return super().to_near(near, wire, after)
