"""Functions of pairs of nodes on any two ranks, compared with autograd on one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.unfinished import in_step
from hpcgnn.errors import CommunicationError
from hpcgnn.graph.places import FindPlaces
from hpcgnn.sar.pairs import NodePairs, pair_values
from tests.graphs import collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
WHOLE = random_graph(31, 90, seed=4)


def shared(graph, ends: np.ndarray) -> tuple[NodePairs, np.ndarray]:
    """Return this rank's share of pairs given by node ids; with three ranks, rank 1 has none."""
    comm = graph.comm
    owner = np.random.default_rng(5).integers(0, comm.size, ends.shape[1])
    owner[owner == 1] = 0 if comm.size >= 3 else 1
    mine = np.flatnonzero(owner == comm.rank)
    places = graph.derived(FindPlaces())
    source, target = (places.of_ids(row[mine]) for row in ends)
    return NodePairs(source, target, mine), mine


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.outer = torch.nn.Linear(8, 6), torch.nn.Linear(6, 2)

    def forward(self, x_src, x_dst):
        return self.outer(torch.tanh(self.inner(torch.cat([x_src, x_dst], dim=1))))


@pytest.mark.parametrize("piece", [7, 1 << 15])
def test_values_and_gradients_of_pairs(comm, piece):
    graph = distribute(WHOLE, comm)
    rng = np.random.default_rng(3)
    ends = rng.integers(0, 31, (2, 50))
    ends[:, 3] = ends[:, 2]
    ends[1, 4] = ends[0, 4]
    x = torch.from_numpy(rng.normal(size=(31, 4)).astype(np.float32))
    weight = torch.from_numpy(rng.normal(size=(50, 2)).astype(np.float32))
    scale = torch.tensor(1.5, requires_grad=True)  # captured, not a parameter

    whole, dense = Decoder(), x.clone().requires_grad_()
    values = whole(dense[ends[0]], dense[ends[1]]) * scale
    (values * weight).sum().backward()
    scale_grad, scale.grad = scale.grad, None

    decoder, x_NK = Decoder(), local(graph, x).requires_grad_()
    pairs, mine = shared(graph, ends)
    state = torch.random.get_rng_state()
    found = pair_values(graph, x_NK, pairs, lambda a, b: decoder(a, b) * scale, piece=piece)
    torch.testing.assert_close(found, values[mine])
    (found * weight[mine]).sum().backward()
    torch.testing.assert_close(collect(graph, x_NK.grad), dense.grad)
    torch.testing.assert_close(comm.allreduce(scale.grad), scale_grad)
    for own, right in zip(decoder.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(comm.allreduce(own.grad), right.grad)
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_numbers_are_the_same_when_recomputed(comm):
    """Dropout inside the function uses the same mask in backward: the gradient is the mask."""
    graph = distribute(WHOLE, comm)
    pairs, mine = shared(graph, np.stack([np.arange(31), np.arange(31)]))
    x_NK = torch.ones(graph.num_local_nodes, 3, requires_grad=True)
    drop = torch.nn.Dropout(0.5)
    found = pair_values(graph, x_NK, pairs, lambda a, b: drop(a), piece=4)
    found.sum().backward()
    kept = np.zeros((31, 3), np.float32)
    for rows, values in comm.allgather((mine, found.detach().numpy())):
        kept[rows] = values
    assert torch.equal(collect(graph, x_NK.grad), torch.from_numpy(kept))
    assert 0 < (kept == 0).sum() < 93


def test_ranks_without_pairs(comm):
    graph = distribute(WHOLE, comm)
    none = np.zeros(0, np.int64)
    x_NK = torch.ones(graph.num_local_nodes, 4, requires_grad=True)
    found = pair_values(graph, x_NK, NodePairs(none, none, none), Decoder())
    assert found.shape == (0, 2)
    found.sum().backward()
    assert not x_NK.grad.any()


def test_positions_of_ids(comm):
    graph = distribute(WHOLE, comm)
    places = graph.derived(FindPlaces())
    ids = np.arange(31)[:: comm.rank + 1]
    assert np.array_equal(places.look_up(places.of_ids(ids), graph.node_ids.numpy()), ids)


def test_a_node_of_very_many_pairs(comm):
    """float32 sums of that many equal terms, one by one, would have errors of 3e-4."""
    graph = distribute(WHOLE, comm)
    count, place = 30_000, graph.derived(FindPlaces()).first
    number = np.arange(count) + comm.rank * count
    pairs = NodePairs(np.zeros(count, np.int64), np.full(count, place), number)
    x_NK = torch.ones(graph.num_local_nodes, 1, requires_grad=True)
    (0.1 * pair_values(graph, x_NK, pairs, lambda a, b: a)).sum().backward()
    if comm.rank == 0:
        wanted = torch.tensor(0.1).double() * count * comm.size
        torch.testing.assert_close(x_NK.grad[0, 0].double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("step", ["pairs", "loss of a task"])
def test_operations_after_an_error_on_one_rank_are_refused(comm, step):
    """Otherwise the next messages would mix with those that the others still wait for."""
    if comm.size == 1:
        pytest.skip("no others")
    made = Communicator(timeout=60)
    graph, rank = distribute(WHOLE, made), comm.rank
    x_NK = local(graph, WHOLE.features)
    pairs, _ = shared(graph, np.random.default_rng(3).integers(0, 31, (2, 50)))

    class Task:
        @in_step
        def loss(self, graph):
            if rank == 0:
                raise ValueError("a fault of the caller's")
            return graph.comm.allreduce(1.0, where="loss")

    def product(x_src, x_dst):
        if rank == 0:
            raise ValueError("a fault of the caller's")
        return (x_src * x_dst).sum(dim=1)

    def run() -> None:
        if step == "pairs":
            pair_values(graph, x_NK, pairs, product, piece=7)
        else:
            Task().loss(graph)

    with pytest.raises(ValueError if rank == 0 else CommunicationError):
        run()
        made.allreduce(np.ones(3), where="later")
    with pytest.raises(CommunicationError, match="was interrupted by ValueError"):
        made.barrier(where="later")
