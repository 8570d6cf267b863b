"""Dropout masks by seed, epoch, layer and node, and linear layers on sparse features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.nn.dropout import Dropout, sparse_dropout
from hpcgnn.nn.linear import Linear
from hpcgnn.storage.read.load import sparse_rows
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
COUNT, WIDTH = 211, 37


@pytest.fixture
def graph(comm):
    return distribute(random_graph(COUNT, 300), comm)


def mask(graph, *, p=0.4, layer=1, seed=0, epoch=1) -> torch.Tensor:
    graph.execution.seed = seed
    graph.set_epoch(epoch)
    return collect(graph, Dropout(p, layer)(graph, torch.ones(graph.num_local_nodes, WIDTH)))


def test_mask_depends_on_its_key_and_never_on_the_partition(comm, graph):
    first = mask(graph)
    assert torch.equal(first, mask(graph))
    block = (np.arange(COUNT) * comm.size // COUNT).astype(np.int32)
    assert torch.equal(first, mask(distribute(random_graph(COUNT, 300), comm, block)))
    everything_on_last = np.full(COUNT, comm.size - 1, np.int32)
    assert torch.equal(first, mask(distribute(random_graph(COUNT, 300), comm, everything_on_last)))
    for other in ({"seed": 1}, {"epoch": 2}, {"layer": 2}):
        agreement = float((mask(graph, **other) == first).float().mean())
        assert abs(agreement - (0.4**2 + 0.6**2)) < 0.03  # as for independent masks


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_statistics(graph, p):
    kept = mask(graph, p=p) > 0
    assert torch.allclose(mask(graph, p=p)[kept], torch.tensor(1 / (1 - p)))
    deviation = (p * (1 - p)) ** 0.5
    assert abs(float(kept.float().mean()) - (1 - p)) < 4 * deviation / (COUNT * WIDTH) ** 0.5
    assert (kept.float().mean(0) - (1 - p)).abs().max() < 4.5 * deviation / COUNT**0.5
    assert (kept.float().mean(1) - (1 - p)).abs().max() < 4.5 * deviation / WIDTH**0.5


@pytest.mark.parametrize(("relu", "in_place"), [(False, False), (True, False), (True, True)])
def test_gradient_is_the_mask(graph, relu, in_place):
    graph.execution.seed = 3
    graph.set_epoch(4)
    start = local(graph, torch.randn(COUNT, WIDTH, generator=torch.manual_seed(1)))
    ones = torch.ones_like(start)
    kept = Dropout(0.3, 1)(graph, ones)
    x = start.clone().requires_grad_()
    before = x * 1
    y = Dropout(0.3, 1, relu=relu, in_place=in_place)(graph, before)
    assert not len(y) or (y.data_ptr() == before.data_ptr()) == in_place
    weights = torch.randn(y.shape)
    (y * weights).sum().backward()
    positive = (start > 0).float() if relu else ones
    torch.testing.assert_close(y.detach(), kept * start * positive)
    torch.testing.assert_close(x.grad, kept * weights * positive)
    quiet = Dropout(0.3, 1, relu=relu, in_place=in_place).eval()
    assert torch.equal(quiet(graph, start.clone()), start * positive)


def some_sparse(graph):
    """Return this rank's rows of features with a third of the entries, dense and sparse."""
    whole = torch.randn(COUNT, WIDTH, generator=torch.manual_seed(1))
    whole *= torch.rand(COUNT, WIDTH, generator=torch.manual_seed(2)) < 0.3
    dense = local(graph, whole)
    rows, columns = np.nonzero(dense.numpy())
    indptr = np.searchsorted(rows, np.arange(len(dense) + 1))
    return dense, sparse_rows(indptr, columns, dense.numpy()[rows, columns], WIDTH)


def as_dense(sparse) -> torch.Tensor:
    return Linear(WIDTH, WIDTH, bias=False).requires_grad_(False).apply(_eye)(sparse)


def _eye(layer: torch.nn.Module) -> None:
    layer.weight.data = torch.eye(WIDTH)


def test_sparse_dropout(comm, graph):
    graph.execution.seed = 5
    graph.set_epoch(6)
    dense, sparse = some_sparse(graph)
    thinned = sparse_dropout(graph, sparse, 0.25)
    found = collect(graph, as_dense(thinned))
    whole = collect(graph, dense)
    kept = found != 0
    torch.testing.assert_close(found, kept * whole / 0.75)
    share = float(kept.sum() / (whole != 0).sum())
    assert abs(share - 0.75) < 0.04
    block = (np.arange(COUNT) * comm.size // COUNT).astype(np.int32)
    other = distribute(random_graph(COUNT, 300), comm, block)
    other.execution.seed = 5
    other.set_epoch(6)
    again = collect(other, as_dense(sparse_dropout(other, some_sparse(other)[1], 0.25)))
    assert torch.equal(again, found)
    # The transposed copy, from which gradients are computed, is masked in the same way.
    layer = Linear(WIDTH, 2)
    layer(thinned).sum().backward()
    torch.testing.assert_close(layer.weight.grad, as_dense(thinned).sum(0).expand(2, -1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.GCNConv(WIDTH, 4),
        lambda: nn.SAGEConv(WIDTH, 4),
        lambda: nn.SAGEConv(WIDTH, 50),
        lambda: nn.GATConv(WIDTH, 4, heads=2),
        lambda: nn.GATv2Conv(WIDTH, 4, heads=2),
        lambda: nn.SGConv(WIDTH, 4, K=2),
    ],
)
def test_layers_on_sparse_features_equal_those_on_dense(comm, graph, make):
    torch.manual_seed(4)
    layer = make()
    dense, sparse = some_sparse(graph)
    results = []
    for features in (dense, sparse):
        layer.zero_grad()
        y = layer(graph, features)
        y.square().sum().backward()
        grads = [comm.allreduce(parameter.grad) for parameter in layer.parameters()]
        results.append([y.detach(), *grads])
    for found, expected in zip(*results, strict=True):
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_sparse_features_are_refused_where_unsupported(graph):
    _, sparse = some_sparse(graph)
    with pytest.raises(Exception, match="needs dense features"):
        nn.SAGEConv(WIDTH, 4, aggr="max")(graph, sparse)


def test_layer_numbers_follow_the_random_state(comm, graph):
    def numbers() -> list[int]:
        torch.manual_seed(3)
        made = [
            nn.Dropout(0.5),
            nn.Dropout(0.5),
            nn.MessagePassing(),
            nn.MessagePassing(),
            nn.GATConv(2, 2),
            nn.GATv2Conv(2, 2),
        ]
        return [layer.layer for layer in made]

    assert len(set(numbers())) == 6 and numbers() == numbers()
    assert len({tuple(one) for one in comm.allgather(numbers())}) == 1
    assert nn.GATConv(2, 2, layer=0).layer == 0 and nn.Dropout(0.5, 7).layer == 7


def test_layer_numbers_that_differ_between_ranks_are_refused(comm, graph):
    if comm.size == 1:
        pytest.skip("no others")
    for kind in (nn.GATConv, nn.GATv2Conv):
        layer = kind(WIDTH, 2, dropout=0.5, layer=comm.rank)
        with pytest.raises(InputError, match="numbers differ between ranks"):
            layer(graph, torch.ones(graph.num_local_nodes, WIDTH))


def test_an_epoch_that_is_never_set_gives_a_warning(graph):
    layer, x = nn.Dropout(0.5), torch.ones(graph.num_local_nodes, WIDTH)
    first = layer(graph, x)
    with pytest.warns(UserWarning, match=r"call graph\.set_epoch\(epoch\)"):
        layer(graph, x)
    graph.set_epoch(1)
    assert graph.num_local_nodes == 0 or not torch.equal(first, layer(graph, x))
    for wrong in (-1, 1.5, True, "1"):
        with pytest.raises(InputError, match="an epoch must be an integer"):
            graph.set_epoch(wrong)
