"""GraphSAGE as one function, whose products overlap with messages, compared with float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.sar import products, sage
from hpcgnn.sar.aggregation import Beside
from hpcgnn.sar.stream import first_sent
from tests.graphs import Whole, collect, distribute, local

pytestmark = pytest.mark.mpi
NODES, WIDTH = 9000, 6


def ring_of_nodes() -> Whole:
    """Return a ring: each node reads both neighbours, so each part sends two rows."""
    here = np.arange(NODES)
    source = np.concatenate([(here + 1) % NODES, (here - 1) % NODES])
    target = np.concatenate([here, here])
    order = np.lexsort((source, target))
    features = np.random.default_rng(0).normal(size=(NODES, WIDTH)).astype(np.float32)
    split, labels = np.zeros(NODES, np.int8), np.zeros(NODES, np.int64)
    return Whole(NODES, source[order], target[order], None, None, None, features, labels, split)


@pytest.mark.parametrize("mode", ["sar", "oneshot"])
def test_products_overlap_with_messages(comm, monkeypatch, mode):
    monkeypatch.setattr(products, "_CACHED", 1 << 10)  # 1,024 rows
    whole = ring_of_nodes()
    graph = distribute(whole, comm, (np.arange(NODES) * comm.size // NODES).astype(int), mode=mode)
    assert comm.size == 1 or first_sent(graph.in_edges) >= min(1024, NODES // comm.size - 2)
    torch.manual_seed(0)
    layer = nn.SAGEConv(WIDTH, 4)
    x = graph.features.clone().requires_grad_()
    factor = torch.arange(4.0 * NODES).reshape(NODES, 4).cos()
    y = layer(graph, x)
    (y * local(graph, factor)).sum().backward()

    exact = torch.from_numpy(whole.features).double().requires_grad_()
    left, right = (
        lin.weight.detach().double().requires_grad_() for lin in (layer.lin_l, layer.lin_r)
    )
    mean = (exact.roll(1, 0) + exact.roll(-1, 0)) / 2
    expected = mean @ left.t() + exact @ right.t() + layer.lin_l.bias.detach().double()
    (expected * factor.double()).sum().backward()

    torch.testing.assert_close(collect(graph, y).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(collect(graph, x.grad).double(), exact.grad, rtol=0, atol=1e-5)
    for lin, weight in ((layer.lin_l, left), (layer.lin_r, right)):
        total = torch.from_numpy(comm.allreduce(lin.weight.grad.double().numpy()))
        torch.testing.assert_close(total, weight.grad, rtol=1e-4, atol=1e-4)


def test_rows_without_remote_neighbours_are_finished_during_the_exchange(comm, monkeypatch):
    """The result has the same bits as if they were computed with all others."""
    monkeypatch.setattr(products, "_CACHED", 1 << 10)  # 1,024 rows
    whole, found, early = ring_of_nodes(), [], []
    owners = (np.arange(NODES) * comm.size // NODES).astype(int)

    def without(before, meanwhile, after):
        return Beside(before, meanwhile)

    def noted(before, meanwhile, after):
        def told(sums, row, progress):
            after(sums, row, progress)
            early.append(after.done)

        return Beside(before, meanwhile, told)

    for beside in (without, noted):
        monkeypatch.setattr(
            sage,
            "Beside",
            lambda before=None, meanwhile=None, after=None, beside=beside: beside(
                before, meanwhile, after
            ),
        )
        graph = distribute(whole, comm, owners, halo_buffer=1 << 13)
        torch.manual_seed(0)
        layer = nn.SAGEConv(WIDTH, 4)
        x = graph.features.clone().requires_grad_()
        y = layer(graph, x)
        y.sin().sum().backward()
        found.append([y.detach(), x.grad, layer.lin_l.weight.grad, layer.lin_r.weight.grad])
    assert all(map(torch.equal, *found))
    assert len(early) == (2 if comm.size > 1 else 0)
    assert all(rows >= 1024 for rows in early)
