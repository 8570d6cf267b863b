"""Weighted degrees: each node's sum, and an error where it has no inverse square root."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcgnn.errors import InputError
from hpcgnn.nn.gcn import normalisation, normalised_sum
from tests.graphs import collect, distribute, random_graph

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
    """The error is raised on all ranks, wherever the node is."""
    edges = [(i, (i + 1) % 9, 2.0) for i in range(9)] + [(0, 6, weight - 2), (1, 8, -9.0)]
    graph = distribute(weighted(edges, 9), comm)
    with pytest.raises(InputError, match=r"into 2 nodes.*node 6 is the first"):
        normalisation(graph, 1.0)


def test_nodes_without_weight_and_without_loops_have_scale_0(comm):
    graph = distribute(weighted([(0, 1, 0.0), (1, 2, 4.0)], 4), comm)
    scale, missing = normalisation(graph, None)
    assert collect(graph, scale).flatten().tolist() == [0, 0, 0.5, 0]
    assert missing is None


def test_weights_whose_sums_would_overflow_are_refused_by_node(comm):
    """1 and 2 are heavy, but only the neighbours of 0 are not."""
    edges = [(0, 1, 3e38), (1, 2, 3e38), (2, 1, 3e38), (3, 4, 2.0)]
    graph = distribute(weighted(edges, 9), comm)
    with pytest.raises(InputError, match=r"into 1 nodes \(node 1 is the first\).*overflow float32"):
        normalisation(graph, 1.0)


def test_scaling_all_weights_changes_nothing(comm):
    edges = [(i, (i + step) % 9) for i in range(9) for step in (0, 1, 3)]
    graphs = [distribute(weighted([(*e, w) for e in edges], 9), comm) for w in (1.0, 3e38)]
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    light, heavy = (collect(g, normalised_sum(g, x[g.node_ids.cpu()])) for g in graphs)
    torch.testing.assert_close(heavy, light)
