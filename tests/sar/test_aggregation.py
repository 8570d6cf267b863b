"""Sums, means, maxima and minima over in-neighbours, compared with dense computation."""

from __future__ import annotations

import pytest
import torch

from hpcgnn.comm.ring import Ring
from hpcgnn.sar.aggregation import in_degrees, neighbour_max, neighbour_sum
from hpcgnn.sar.vertex_cover import sum_plan
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
SIZES = [(7, 12), (8, 30), (9, 3), (9, 0), (500, 3000)]
WAYS = [  # mode, fewest_rows, halo_buffer
    ("sar", True, 4096),
    ("sar", False, 4096),
    ("sar", True, 1 << 20),
    ("sa", False, 1 << 20),
    ("oneshot", True, 4096),
    ("oneshot", False, 4096),
]


# Every pair of two of these, and all four of the last two.
GRAPHS = [
    (*size, weighted, weighted == (i % 2 == 1))
    for i, size in enumerate(SIZES)
    for weighted in (0, 1)
]


@pytest.mark.parametrize(("num_nodes", "num_edges", "weighted", "symmetric"), GRAPHS)
def test_sums_and_their_gradients(comm, num_nodes, num_edges, weighted, symmetric):
    whole = random_graph(num_nodes, num_edges, symmetric=symmetric, weighted=weighted)
    dense = whole.dense()
    x = torch.from_numpy(whole.features).double()
    weights = torch.randn(num_nodes, x.shape[1], generator=torch.manual_seed(1)).double()
    expected = torch.cat([dense @ x, dense.T @ weights], dim=1)
    graph = distribute(whole, comm)
    assert graph.symmetric == symmetric or num_edges < 4
    for graph.execution.mode, graph.execution.fewest_rows, halo_buffer in WAYS:
        graph.execution.ring = Ring(comm, halo_buffer=halo_buffer)
        x_local = local(graph, x.float()).requires_grad_()
        y = neighbour_sum(graph, x_local)
        (y * local(graph, weights.float())).sum().backward()
        found = collect(graph, torch.cat([y, x_local.grad], dim=1)).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if graph.execution.mode == "sar":
            assert graph.ring.peak_bytes <= halo_buffer
    degrees = collect(graph, in_degrees(graph)[:, None])[:, 0]
    assert torch.equal(degrees.double(), whole.dense(weighted=False).sum(1))


def test_the_fewest_rows_option_sends_less(comm):
    whole = random_graph(400, 900, seed=3)
    sent = {}
    for fewest in (True, False):
        graph = distribute(whole, comm)
        graph.execution.fewest_rows = fewest
        neighbour_sum(graph, graph.features)
        sent[fewest] = comm.allreduce(graph.ring.bytes_sent)
    assert sent[True] < 0.95 * sent[False] or comm.size == 1


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize(("num_nodes", "num_edges"), SIZES)
def test_max_splits_the_gradient_among_ties(comm, num_nodes, num_edges, smallest):
    whole = random_graph(num_nodes, num_edges)
    x = torch.from_numpy(whole.features).mul(2).round().add(0.25).requires_grad_()  # many ties
    index = torch.from_numpy(whole.target)[:, None].expand(-1, x.shape[1])
    expected = torch.zeros_like(x).scatter_reduce(
        0,
        index,
        x[torch.from_numpy(whole.source)],
        "amin" if smallest else "amax",
        include_self=False,
    )
    weights = torch.randn(x.shape, generator=torch.manual_seed(1))
    (expected * weights).sum().backward()
    graph = distribute(whole, comm, halo_buffer=4096)
    x_local = local(graph, x.detach()).requires_grad_()
    y = neighbour_max(graph, x_local, smallest=smallest)
    (y * local(graph, weights)).sum().backward()
    torch.testing.assert_close(collect(graph, y), expected.detach())
    torch.testing.assert_close(collect(graph, x_local.grad), x.grad, rtol=1e-5, atol=1e-6)


def test_rows_sent_one_by_one_are_listed_once(comm):
    graph = distribute(random_graph(40, 200), comm)
    graph.execution.fewest_rows = False
    plan = sum_plan(graph, graph.in_edges, weighted=False)
    for sender, rows in zip(plan.senders, graph.in_edges.send_rows, strict=True):
        assert sender.columns.data_ptr() == rows.data_ptr()
        assert sender.begin.tolist() == list(range(len(rows)))
        assert sender.end.tolist() == list(range(1, len(rows) + 1))
