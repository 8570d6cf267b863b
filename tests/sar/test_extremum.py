"""Maxima and minima over the ring against dense ones."""

import pytest
import torch

from hpcgnn.sar.extremum import neighbour_max
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
SIZES = [(7, 12), (8, 30), (9, 3), (9, 0), (500, 3000)]


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize(("num_nodes", "num_edges"), SIZES)
def test_max_shares_gradient_among_ties(comm, num_nodes, num_edges, smallest):
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
