"""Sums by relation: the order of the work, its memory and the messages."""

from __future__ import annotations

import pytest
import torch
from mpi4py import MPI

from hpcgnn import nn
from hpcgnn.comm.communicator import Communicator
from hpcgnn.sar import relation_pairs, relational
from hpcgnn.sar.relation_pairs import RelationPairs
from tests.graphs import Whole, collect, distribute, local, random_graph
from tests.sar.test_stream import FLOAT, boundary, sent

pytestmark = pytest.mark.mpi


def run(whole: Whole, comm, weight_RFG: torch.Tensor, mean: bool, **options):
    """Return output, gradients of x and of the weights over all ranks, and the graph."""
    graph = distribute(whole, comm, **options)
    x_NF = local(graph, whole.features).double().requires_grad_()
    weight_RFG = weight_RFG.clone().requires_grad_()
    y_NG = relational.relational_sum(graph, x_NF, weight_RFG, mean=mean)
    (y_NG.square().sum() / 2).backward()
    rows = collect(graph, torch.cat([y_NG, x_NF.grad], dim=1))
    return rows, comm.allreduce(weight_RFG.grad), graph


def dense(whole: Whole, weight_RFG: torch.Tensor, mean: bool):
    x_NF = torch.from_numpy(whole.features).double().requires_grad_()
    weight_RFG = weight_RFG.clone().requires_grad_()
    y_NG = torch.zeros(whole.num_nodes, weight_RFG.shape[2], dtype=torch.float64)
    for relation, weight_FG in enumerate(weight_RFG):
        matrix = torch.zeros(whole.num_nodes, whole.num_nodes, dtype=torch.float64)
        for source, target, kind in zip(whole.source, whole.target, whole.relation, strict=True):
            matrix[target, source] += float(kind == relation)
        if mean:
            matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
        y_NG = y_NG + matrix @ x_NF @ weight_FG
    (y_NG.square().sum() / 2).backward()
    return torch.cat([y_NG, x_NF.grad], dim=1).detach(), weight_RFG.grad


def weights(num_relations: int, outputs: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_relations, 5, outputs, dtype=torch.float64, generator=generator)


# Every pair of two of these.
ORDERS = [
    (slab, outputs, cost, (i + j + k) % 2 == 1)
    for i, slab in enumerate((1, 7, 64))
    for j, outputs in enumerate((2, 9))
    for k, cost in enumerate((0, 1e9))
]


@pytest.mark.parametrize(("slab", "outputs", "cost", "mean"), ORDERS)
def test_sums_and_products_in_either_order_are_right(comm, monkeypatch, slab, outputs, cost, mean):
    """A high cost of edges decides by the narrower side: sums first, or products first."""
    monkeypatch.setattr(relation_pairs, "SLAB", slab)
    monkeypatch.setattr(relational, "EDGE_COST", cost)
    whole = random_graph(60, 200, num_relations=3)
    rows, grad, graph = run(whole, comm, weights(4, outputs), mean, halo_buffer=4096)
    expected_rows, expected_grad = dense(whole, weights(4, outputs), mean)
    torch.testing.assert_close(rows, expected_rows, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-4)
    built = {w: found for w, found in graph._kept.items() if isinstance(found, RelationPairs)}
    assert all(s.high - s.low <= slab for pairs in built.values() for s in pairs.slabs)
    forward = {w: found for w, found in built.items() if isinstance(w, relational.ForwardPairs)}
    orders = {w.row_wise for w, found in forward.items() if found.slabs}
    assert cost == 0 or orders <= {outputs == 9}


@pytest.mark.parametrize("by", ["row", "column"])
def test_a_hub_is_multiplied_once_per_relation(by):
    """As the destination or the source of all edges: not once per edge."""
    whole = random_graph(100, 300, num_relations=2)
    (whole.target if by == "row" else whole.source)[:] = 7
    graph = distribute(whole, Communicator(MPI.COMM_SELF))
    relational.relational_sum(graph, graph.features, weights(2, 5).float(), mean=True)
    (pairs,) = (found for found in graph._kept.values() if isinstance(found, RelationPairs))
    assert sum(slab.gather.num_rows for slab in pairs.slabs) == 2


def test_two_runs_give_the_same_bits(comm):
    whole = random_graph(200, 2000, num_relations=3)
    first = run(whole, comm, weights(3, 4), True, halo_buffer=4096)
    second = run(whole, comm, weights(3, 4), True, halo_buffer=4096)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("mode", ["sar", "sa", "oneshot"])
def test_one_message_each_way_per_boundary_row(comm, mode):
    """Forward the inputs of sources, backward the gradients of destinations, nothing else."""
    graph = distribute(random_graph(120, 500, num_relations=3, width=12), comm, mode=mode)
    layer = nn.RGCNConv(12, 7, 3)
    layer(graph, graph.features).sum().backward()
    forward, backward = boundary(graph)
    assert sent(graph) == FLOAT * (12 * forward + 7 * backward)
