"""GraphSAGE as one function, whose products overlap with messages, compared with float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.comm.transport.delayed import DelayedTransport, Link
from hpcgnn.comm.transport.host import HostTransport
from hpcgnn.sar import aggregation, products, sage
from hpcgnn.sar.aggregation import Beside
from hpcgnn.sar.stream import first_sent
from hpcgnn.sar.vertex_cover import sum_plan
from tests.graphs import Whole, collect, distribute, local, random_graph

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


def test_products_that_need_no_message_are_computed_while_messages_travel(comm, monkeypatch):
    """Rows without remote neighbours are finished; the others have the same bits as if later."""
    monkeypatch.setattr(products, "_CACHED", 1 << 10)  # 1,024 rows
    whole, found, early, ahead = ring_of_nodes(), [], [], []
    owners = (np.arange(NODES) * comm.size // NODES).astype(int)

    def waiting(after, spare, **others):
        return Beside(after=after, **others)

    def working(after, spare, **others):
        def told(sums, row, progress):
            after(sums, row, progress)
            early.append(after.done)

        def counted():
            ahead.append(spare())
            return ahead[-1]

        return Beside(after=told, spare=counted, **others)

    for beside in (waiting, working):
        monkeypatch.setattr(sage, "Beside", beside)
        graph = distribute(whole, comm, owners, halo_buffer=1 << 13)
        graph.ring.transport = DelayedTransport(HostTransport(), Link(10**9, 0.05))
        torch.manual_seed(0)
        first, second = nn.SAGEConv(WIDTH, 4), nn.SAGEConv(4, 4)
        x = graph.features.clone().requires_grad_()
        y = second(graph, torch.relu(first(graph, x)))
        y.sin().sum().backward()
        weights = [lin.weight.grad for conv in (first, second) for lin in (conv.lin_l, conv.lin_r)]
        found.append([y.detach(), x.grad, *weights])
    assert all(map(torch.equal, *found))
    if comm.size > 1:
        last = len(x) // 1024 * 1024
        assert early[0] == last and early[-1] == len(x)
        assert len(x) % 1024 > 2 and ahead.count(True) == 3  # not backward of 6 columns into 4


def test_rows_are_complete_after_the_last_message_that_adds_to_them(comm):
    graph = distribute(random_graph(300, 900), comm)
    plan, most = sum_plan(graph, graph.in_edges, weighted=False), 7
    _, arrivals = plan.cut(most)
    rows = [
        (torch.arange(block.num_rows) if block.rows is None else block.rows)[
            block.end > block.begin
        ]
        for block in arrivals
    ]
    ends = plan.derived(aggregation._Complete(most))
    assert ends == [
        min((int(part.min()) for part in rows[number:]), default=graph.num_local_nodes)
        for number in range(len(rows) + 1)
    ]
