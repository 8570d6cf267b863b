"""Rows and gradients of a layer without messages that the next layer computes between its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcgnn import nn
from hpcgnn.models.stack import Stack
from hpcgnn.sar import products
from hpcgnn.sar.handed import Handed
from hpcgnn.sar.sage_constant import ConstantGradients
from tests.graphs import distribute
from tests.sar.test_sage import NODES, WIDTH, ring_of_nodes

pytestmark = pytest.mark.mpi


def layers() -> Stack:
    torch.manual_seed(0)
    return Stack(
        WIDTH, 4, 3, 3, lambda a, b, _: nn.SAGEConv(a, b), dropout=0.3, input_dropout=0.0
    ).train()


class Halved(torch.nn.Module):
    def forward(self, graph, x):
        return x / 2


class Work:
    """What is done, in order: rows made and slabs of gradients added for the next layer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[slice] = []
        self.ahead = 0
        make, follow = Handed.make, ConstantGradients.follow

        def made(handed, rows):
            self.made.append(rows)
            make(handed, rows)

        def followed(gradients, grad_NG, end, part_SG):
            self.ahead += end < len(grad_NG)
            follow(gradients, grad_NG, end, part_SG)

        monkeypatch.setattr(Handed, "make", made)
        monkeypatch.setattr(ConstantGradients, "follow", followed)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_next_layer_makes_rows_that_it_sends_first_with_the_same_bits(comm, monkeypatch, bf16):
    monkeypatch.setattr(products, "_CACHED", 1 << 10)  # 1,024 rows
    owners = (np.arange(NODES) * comm.size // NODES).astype(int)
    graph, work = distribute(ring_of_nodes(), comm, owners), Work(monkeypatch)

    def found() -> list[Tensor]:
        model = layers()
        graph.set_epoch(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = model(graph, graph.features)
            with torch.no_grad():
                again = model(graph, graph.features)
        loss = y.float().sin().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return [y.detach(), again, *(parameter.grad for parameter in model.parameters())]

    handed = found()
    count = len(graph.features)
    if comm.size > 1:
        assert work.made[0].stop == count and work.ahead >= 2 * (count > 2048)
    else:
        assert not work.made
    number = len(work.made)
    monkeypatch.setattr(nn.SAGEConv, "hands_to", lambda *_: False)
    assert all(map(torch.equal, found(), handed)) and len(work.made) == number
    monkeypatch.undo()
    monkeypatch.setattr(products, "_CACHED", 1 << 10)
    monkeypatch.setattr(ConstantGradients, "are_of", lambda *_: False)  # as if a hook changed them
    assert all(map(torch.equal, found(), handed))


def test_a_layer_before_a_module_of_a_users_hands_nothing_on(comm, monkeypatch):
    graph, work, model = distribute(ring_of_nodes(), comm), Work(monkeypatch), layers().eval()
    model.dropouts[0] = Halved()
    y = model(graph, graph.features)
    x = model.convs[0](graph, graph.features) / 2
    assert not work.made
    assert torch.equal(y, model.convs[2](graph, torch.relu(model.convs[1](graph, x))))


def test_a_layer_with_hooks_hands_nothing_on(comm, monkeypatch):
    graph, work, model, seen = distribute(ring_of_nodes(), comm), Work(monkeypatch), layers(), []
    model.eval().convs[0].register_forward_hook(lambda conv, given, y: seen.append(y.clone()))
    model.convs[1].register_full_backward_hook(lambda *_: None)
    model(graph, graph.features).sum().backward()
    assert torch.equal(seen[0], torch.relu(layers().convs[0](graph, graph.features)))
    assert not work.made
