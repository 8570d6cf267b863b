"""Which products of attention layers are kept for backward in mode `sar`."""

from __future__ import annotations

import weakref

import pytest
import torch

from hpcgnn import nn
from hpcgnn.models.stack import Stack
from hpcgnn.sar import gat
from tests.graphs import distribute, random_graph

pytestmark = pytest.mark.mpi


def three_layers(a: int, b: int, layer: int) -> nn.GATConv:
    return nn.GATConv(a, b // 2, 2, dropout=0.3, layer=layer)


def test_only_the_newest_layer_finds_its_product(comm, monkeypatch):
    graph = distribute(random_graph(40, 160, width=6), comm)
    torch.manual_seed(0)
    model = Stack(6, 8, 4, 3, three_layers)
    products = []

    def product(*args):
        z_NK = plain(*args)
        products.append(weakref.ref(z_NK))
        return z_NK

    plain = gat.product
    monkeypatch.setattr(gat, "product", product)

    def gradients(keeps: bool) -> tuple[int, list[torch.Tensor]]:
        model.zero_grad()
        products.clear()
        loss = model(graph, graph.features).square().sum()
        first, second, third = (ref() for ref in products)
        assert first is None and second is None and third is graph.execution.newest is not None
        if not keeps:
            third = graph.execution.newest = None
        loss.backward()
        assert graph.execution.newest is None
        return len(products), [parameter.grad.clone() for parameter in model.parameters()]

    with_it, expected = gradients(keeps=True)
    without, found = gradients(keeps=False)
    # Forward, gradients of the inputs of two layers, products of two or three.
    assert (with_it, without) == (3 + 2 + 2, 3 + 2 + 3)
    assert all(map(torch.equal, found, expected))


def test_inference_keeps_nothing(comm):
    graph = distribute(random_graph(9, 24, width=6), comm)
    with torch.no_grad():
        three_layers(6, 4, 1)(graph, graph.features)
    assert graph.execution.newest is None
