"""Rehearsals of the layers of a user's model, of which nothing but kernels remains."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from hpcgnn import nn
from hpcgnn.comm.mirror import Mirror, MirrorTransport
from hpcgnn.comm.ring import Ring
from hpcgnn.graph.features import SparseRows
from hpcgnn.models.demands import Content
from hpcgnn.nn import pyg
from hpcgnn.train import layer_rehearsal
from hpcgnn.train.sample import Kinds, sample
from tests.graphs import distribute, random_graph
from tests.nn import test_message_layers as message_layers
from tests.nn.test_against_pyg import EDGES, LAYERS


class Users(torch.nn.Module):
    """A module of the user's own, which notes when it is called or copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.calls = torch.nn.Linear(6, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.lin(x)

    def __getstate__(self):
        raise AssertionError("copied")


class Net(torch.nn.Module):
    """Layers with hooks, state, shared weights and a norm, and a model's own code."""

    def __init__(self, graph) -> None:
        super().__init__()
        self.first = nn.SAGEConv(5, 6)
        self.gin = nn.GINConv(Users(), train_eps=True)
        self.pair = nn.GATv2Conv(4, 4, heads=2, share_weights=True, dropout=0.3)
        self.as_in_pyg = pyg.GATConv(8, 3)
        self.deep = nn.GENConv(3, 3, norm="batch")
        self.dropout = nn.Dropout(0.4)
        self.rows, self.graph, self.calls = nn.Embedding(graph, 3, 0), graph, 0
        for module in self.modules():
            module.register_forward_hook(self.count)
        self.first.lin_l.weight.register_hook(self.count)

    def count(self, *_) -> None:
        self.calls += 1

    def forward(self, graph, x):
        raise AssertionError("the user's code ran")


@pytest.fixture
def graph(comm):
    return distribute(random_graph(40, 100), comm)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_model_is_left_as_it_was(graph, ranks):
    model = Net(graph)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn, mirror = torch.get_rng_state(), Mirror(ranks)
    few = layer_rehearsal.few_nodes(graph, Content(False, 0, False, False, True, False), mirror)
    layer_rehearsal.run(model, few, "bf16", trains=True)
    mirror.close()
    assert model.calls == model.gin.nn.calls == 0
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert graph.ring.peak_bytes == 0


@pytest.mark.parametrize("trains", [True, False])
def test_every_layer_is_rehearsed_and_of_those_alike_one(graph, monkeypatch, trains):
    named = list((LAYERS | EDGES).values()) + [make for _, make in message_layers.LAYERS.values()]
    layers = [make(nn) for make in named]
    called, original = Counter(), layer_rehearsal._pass

    def counted(layer, *given):
        called[type(layer)] += 1
        return original(layer, *given)

    monkeypatch.setattr(layer_rehearsal, "_pass", counted)
    content, mirror = Content(True, 3, True, False, True, False), Mirror(3)
    few = layer_rehearsal.few_nodes(replace(graph, num_relations=3), content, mirror)
    counts = []
    for model in (torch.nn.ModuleList(layers), torch.nn.ModuleList(2 * [*layers, *layers])):
        layer_rehearsal.run(model, few, "fp32", trains=trains)
        counts.append(called.copy())
        called.clear()
    mirror.close()
    assert counts[0] == counts[1]
    whole = {nn.DeepGCNLayer}  # of which the layers within it are called
    assert {type(layer) for layer in layers} - whole <= set(counts[0])


def test_sparse_features_are_multiplied(monkeypatch):
    mirror, called, original = Mirror(3), [], layer_rehearsal._pass

    def noted(layer, graph, x, *given):
        called.append((type(layer), isinstance(x, SparseRows)))
        return original(layer, graph, x, *given)

    monkeypatch.setattr(layer_rehearsal, "_pass", noted)
    kinds = Kinds("sparse", 5, 3, weights=False, edge_width=0, relations=0)
    few = sample(kinds, Ring(mirror, transport=MirrorTransport(torch.device("cpu"))))
    model = torch.nn.Sequential(nn.Linear(5, 4), nn.GCNConv(5, 4), nn.SAGEConv(4, 3))
    layer_rehearsal.run(model, few, "fp32", trains=True)
    mirror.close()
    assert called[:2] == [(nn.GCNConv, False), (nn.SAGEConv, False)]
    assert set(called[2:]) == {(nn.Linear, True), (nn.GCNConv, True)}
