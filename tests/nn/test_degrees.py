"""Weighted degrees: each node's own sum, and a word where it has no inverse square root."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_geometric import nn as pyg

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.nn.gcn import normalisation
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi


def weighted(edges: list[tuple[int, int, float]], num_nodes: int):
    edges = sorted(edges, key=lambda edge: edge[1::-1])
    source, target, weight = (np.array(column) for column in zip(*edges, strict=True))
    whole = random_graph(num_nodes, 1)
    return replace(whole, source=source, target=target, weight=weight.astype(np.float32))


def test_weights_of_mixed_size_are_not_lost(comm):
    edges = [(i, (i + 1) % 9, 3.0) for i in range(9)]
    edges[1] = (1, 2, 1e18)
    edges += [(4, 4, 5.0)]
    graph = distribute(weighted(edges, 9), comm)
    scale, missing = normalisation(graph, 1.0)
    degree = torch.full((9, 1), 4.0)
    degree[2], degree[4] = 1e18, 3 + 5
    torch.testing.assert_close(collect(graph, scale), degree.rsqrt())
    assert collect(graph, missing)[:4].flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("weight", [-3.0, -1.0])
def test_weights_that_cancel_out_are_refused_by_node(comm, weight):
    """On all ranks, wherever the node is."""
    edges = [(i, (i + 1) % 9, 2.0) for i in range(9)] + [(0, 6, weight - 2), (1, 8, -9.0)]
    graph = distribute(weighted(edges, 9), comm)
    with pytest.raises(InputError, match=r"into 2 nodes.*node 6 is the first"):
        normalisation(graph, 1.0)


@pytest.mark.parametrize("back", [False, True])
def test_the_last_of_parallel_loops_alone_counts(comm, back):
    """As in PyTorch Geometric, also beside one of 1e8 times its weight, there and in backward."""
    edges = [(i, (i + 1) % 9, 1.0 + i) for i in range(9)]
    edges += [(b, a, w) for a, b, w in edges] if back else []
    edges += [(4, 4, 1e8), (4, 4, 2.0), (7, 7, 0.5), (8, 8, 1e9), (8, 8, -1e9), (8, 8, 3.0)]
    whole = weighted(edges, 9)
    graph = distribute(whole, comm)
    torch.manual_seed(0)
    layer = nn.GCNConv(5, 3)
    theirs = pyg.GCNConv(5, 3)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    own, other = local(graph, x).requires_grad_(), x.clone().requires_grad_()
    ends = torch.from_numpy(np.stack([whole.source, whole.target]))
    found, wanted = layer(graph, own), theirs(other, ends, torch.from_numpy(whole.weight))
    torch.testing.assert_close(collect(graph, found.detach()), wanted.detach())
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(collect(graph, own.grad), other.grad)


def test_nodes_without_weight_and_without_loops_have_scale_0(comm):
    graph = distribute(weighted([(0, 1, 0.0), (1, 2, 4.0)], 4), comm)
    scale, missing = normalisation(graph, None)
    assert collect(graph, scale).flatten().tolist() == [0, 0, 0.5, 0]
    assert missing is None
