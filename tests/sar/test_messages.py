"""Messages in plain torch: gradients of nodes with very many edges."""

import pytest
import torch

from hpcgnn import nn
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi


class Tenth(nn.MessagePassing):
    def message(self, x_src, x_dst, edge):
        return x_src * 0.1 + x_dst * 0.3


def test_gradients_of_a_hub_do_not_drift(comm):
    """For a hub that is the source of all edges, and for one that is their destination."""
    whole = random_graph(40, 300_000, width=1)
    whole.source[:] = 7
    graph = distribute(whole, comm)
    x = local(graph, whole.features).requires_grad_()
    Tenth("sum", piece=1 << 20)(graph, x).sum().backward()
    found = collect(graph, x.grad)[:, 0].double()
    expected = torch.from_numpy(whole.target).bincount(minlength=40) * 0.3
    expected[7] += 0.1 * len(whole.source)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=0)
