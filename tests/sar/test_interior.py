"""Local work of a GPU in slices between messages: the same results whenever messages arrive."""

from __future__ import annotations

import pytest
import torch

from hpcgnn import nn
from hpcgnn.comm import exchange
from hpcgnn.comm.arrivals import Arrival
from hpcgnn.comm.transport.staged import StagedTransport
from hpcgnn.sar import interior, stream
from hpcgnn.sar.aggregation import neighbour_max, neighbour_sum
from tests.comm.transport.test_transport import Event, Sluggish
from tests.graphs import collect, distribute, local, random_graph
from tests.kernels.conftest import emulated  # noqa: F401

pytestmark = pytest.mark.mpi


class Counted(Arrival):
    """Counts the messages that were handed out."""

    count = 0

    def __init__(self, *given) -> None:
        super().__init__(*given)
        Counted.count += 1


class Piece(Event):
    """A piece of work that ends when one more message has been handed out."""

    def __init__(self) -> None:
        super().__init__(1)
        self.begun = Counted.count

    def query(self) -> bool:
        return Counted.count > self.begun


class Busy(StagedTransport):
    def mark(self) -> Piece:
        return Piece()


@pytest.fixture
def between(monkeypatch) -> list[int]:
    """Slice all work as on a GPU; append for each slice the number of messages after it."""
    taken: list[int] = []
    arrivals = stream.PiecesAhead.arrivals

    def counted(self):
        taken.append(0)
        for arrival in arrivals(self):
            taken[-1] += 1
            yield arrival

    monkeypatch.setattr(stream.PiecesAhead, "arrivals", counted)
    monkeypatch.setattr(exchange, "Arrival", Counted)
    monkeypatch.setattr(interior, "SLICE", 1)
    return taken


LAYERS = {
    "sum": lambda: neighbour_sum,
    "max": lambda: neighbour_max,
    "gat": lambda: nn.GATConv(5, 4, heads=2, layer=1),
    "gat without loops": lambda: nn.GATConv(5, 4, heads=2, layer=1, add_self_loops=False),
    "gatv2": lambda: nn.GATv2Conv(5, 4, heads=2, layer=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_messages_between_slices_give_the_same_bits(comm, between, emulated, monkeypatch, name):  # noqa: F811
    whole, found = random_graph(200, 500), []
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for sliced in (False, True):
        monkeypatch.setattr(interior, "on_gpu", lambda blocks, sliced=sliced: sliced)
        graph = distribute(whole, comm, halo_buffer=4096)
        graph.ring.transport = Busy(Sluggish((1, 3)))
        x = local(graph, whole.features).requires_grad_()
        out = layer(graph, x)
        (out * out).sum().backward()
        found.append((collect(graph, out), collect(graph, x.grad)))
        assert bool(between) == (sliced and comm.size > 1 and graph.num_local_nodes > 0)
    for plain, mixed in zip(*found, strict=True):
        assert torch.equal(plain, mixed)
    assert comm.allreduce(sum(between)) > 0 or comm.size == 1


def test_slices_hold_each_row_once_and_balance_edges(comm, between, monkeypatch):
    monkeypatch.setattr(interior, "on_gpu", lambda blocks: True)
    graph = distribute(random_graph(900, 1500, symmetric=True), comm)
    edges = graph.in_edges
    own = edges.blocks[edges.rank]
    if not own.num_edges:  # rank 1 of 3
        assert interior.in_slices(edges, [own], 4) == ([own], [])
        return
    (near,), slices = interior.in_slices(edges, [own], 4)
    rows = torch.cat([near.rows, *(block.rows for block in slices)])
    assert torch.equal(rows.sort().values, torch.arange(own.num_rows, dtype=torch.int32))
    sent = torch.cat([torch.empty(0, dtype=torch.int32), *edges.send_rows]).unique()
    assert torch.equal(near.rows, sent)  # of a symmetric graph
    edge_counts = [block.num_edges for block in slices]
    assert near.num_edges + sum(edge_counts) == own.num_edges
    assert max(edge_counts) <= sum(edge_counts) / len(slices) + 30
    again = interior.in_slices(edges, [own], 8)
    assert all(a is b for a, b in zip(slices, again[1], strict=True))
