"""Progress of messages, and exact bytes sent: what each saving saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.comm.arrivals import Arrival
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import Ring
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.stack import Stack
from hpcgnn.sar.aggregation import neighbour_sum
from tests.graphs import Whole, collect, distribute, local, random_graph

pytestmark = pytest.mark.mpi
FLOAT = 4
DATA, REPLY = 11, 12  # tags of messages


def power_law(num_nodes: int = 300, num_edges: int = 900) -> Whole:
    """Return a sparse, skewed graph: few nodes have most edges."""
    whole = random_graph(num_nodes, num_edges, seed=5, width=12)
    rng = np.random.default_rng(6)
    ends = (num_nodes * rng.random((2, num_edges)) ** 4).astype(np.int64)
    ends[0] = rng.permutation(num_nodes)[ends[0]]
    whole.source, whole.target = ends[:, np.lexsort(ends)]
    return whole


def sent(graph: PartitionedGraph, before: int = 0) -> int:
    """Return the bytes that all ranks have sent."""
    return graph.ring.comm.allreduce(graph.ring.bytes_sent) - before


def boundary(graph: PartitionedGraph) -> tuple[int, int]:
    """Return the number of rows in all send lists, forward and reversed."""
    comm = graph.ring.comm
    return tuple(
        comm.allreduce(sum(len(rows) for rows in edges.send_rows))
        for edges in (graph.in_edges, graph.out_edges)
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_attention_sends_two_messages_per_boundary_row(comm, symmetric):
    """Forward sends z and s, backward g, t, log-sum-exp and D; only dL/dt is returned."""
    heads, hidden, layers = 2, 16, 3
    graph = distribute(random_graph(120, 500, symmetric=symmetric, width=12), comm)

    def attention(a: int, b: int, layer: int) -> nn.GATConv:
        return nn.GATConv(a, b // heads, heads, layer=layer)

    torch.manual_seed(0)
    model = Stack(12, hidden, hidden, layers, attention)
    model(graph, graph.features).sum().backward()
    forward, backward = boundary(graph)
    expected = layers * FLOAT * (forward * (hidden + heads) + backward * (hidden + 4 * heads))
    assert sent(graph) == expected
    if symmetric:
        assert forward == backward
        row = FLOAT * hidden
        assert expected <= layers * forward * (2.1 * row + 5 * FLOAT * heads)


@pytest.mark.parametrize("layer", ["sum", "attention"])
def test_messages_are_posted_in_the_order_of_the_ring(comm, monkeypatch, layer):
    """By the step, then in pieces: what `Exchange` needs to be free of deadlocks.

    Sums return replies (partial sums and rows), whose order is that of the messages they answer.
    """
    graph = distribute(power_law(1200, 6000), comm, halo_buffer=4096, prefetch=1)
    convolution = nn.SAGEConv(12, 20) if layer == "sum" else nn.GATConv(12, 8, 2)
    exchanges: dict[tuple[int, str, int], list[int]] = {}

    def recorded(kind: str, ahead: int):
        real = getattr(Communicator, kind)

        def post(self, buffer, peer, tag):
            if tag in (DATA, REPLY):
                step = ahead * (peer - comm.rank) % comm.size
                exchanges.setdefault((graph.ring.begun, kind, tag), []).append(step)
            return real(self, buffer, peer, tag)

        return post

    monkeypatch.setattr(Communicator, "issend", recorded("issend", +1))
    monkeypatch.setattr(Communicator, "irecv", recorded("irecv", -1))
    x = graph.features.clone().requires_grad_()
    convolution(graph, x).square().sum().backward()
    for (_, kind, tag), steps in exchanges.items():
        # Replies go the other way: to the rank r - k at step k.
        expected = steps if tag == DATA else [-step % comm.size for step in steps]
        assert expected == sorted(expected), (kind, tag)
    # Some rank sends several pieces to several others.
    several = any(len(steps) > len(set(steps)) > 1 for steps in exchanges.values())
    assert comm.allreduce(int(several), "max") == (comm.size > 2)


def epochs(graph: PartitionedGraph, make, count: int = 2):
    """Return the bytes sent in each epoch, and the output and gradients of the last."""
    torch.manual_seed(0)
    layer = make()
    per_epoch = []
    for _ in range(count):
        layer.zero_grad()
        before = sent(graph)
        y = layer(graph, graph.features)
        (y * y).sum().backward()
        per_epoch.append(sent(graph, before))
    comm = graph.ring.comm
    grads = [comm.allreduce(parameter.grad) for parameter in layer.parameters()]
    return per_epoch, [collect(graph, y), *grads]


FIRST = {
    "gcn": lambda: nn.GCNConv(12, 20),
    "gcn narrow": lambda: nn.GCNConv(12, 3),
    "sage": lambda: nn.SAGEConv(12, 20),
    "sgc": lambda: nn.SGConv(12, 20, K=2),
}


@pytest.mark.parametrize("name", FIRST)
def test_sums_of_features_are_exchanged_once(comm, name):
    whole, results = power_law(), {}
    for cached in (True, False):
        graph = distribute(whole, comm)
        graph.execution.cache_first = cached
        (first, second), results[cached] = epochs(graph, FIRST[name])
        if cached:
            assert second == 0
            assert first > 0 or comm.size == 1
        else:
            assert second == first
    for found, expected in zip(results[True], results[False], strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_the_fewest_rows_option_sends_less(comm):
    whole, results, total = power_law(), {}, {}
    for fewest in (True, False):
        graph = distribute(whole, comm)
        graph.execution.fewest_rows, graph.execution.cache_first = fewest, False
        x = graph.features.clone().requires_grad_()
        y = neighbour_sum(graph, x)
        (y * y).sum().backward()
        total[fewest] = sent(graph)
        results[fewest] = collect(graph, torch.cat([y, x.grad], dim=1))
    scale = float(results[False].abs().max())
    torch.testing.assert_close(results[True], results[False], rtol=1e-5, atol=1e-5 * scale)
    assert total[False] == FLOAT * 12 * sum(boundary(graph))
    assert total[True] < 0.8 * total[False] or comm.size == 1


@pytest.mark.parametrize("kind", [nn.GCNConv, nn.SAGEConv, nn.SGConv])
@pytest.mark.parametrize(("width_in", "width_out"), [(12, 3), (3, 12)])
def test_the_narrower_side_is_sent(comm, kind, width_in, width_out):
    """Rows have the narrower width of input and output, unless this is switched off."""
    torch.manual_seed(3)
    whole, layer, results = power_law(), kind(width_in, width_out), {}
    weights = torch.randn(300, width_out)
    for narrow, width in ((True, min(width_in, width_out)), (False, width_in)):
        graph = distribute(whole, comm)
        graph.execution.fewest_rows, graph.execution.narrow_first = False, narrow
        layer.zero_grad()
        x = graph.features[:, :width_in].clone().requires_grad_()
        y = layer(graph, x)
        (y * local(graph, weights)).sum().backward()
        assert sent(graph) == FLOAT * width * sum(boundary(graph))
        of_parameters = [comm.allreduce(p.grad) for p in layer.parameters()]
        results[narrow] = [collect(graph, y.detach()), collect(graph, x.grad), *of_parameters]
    for found, expected in zip(results[True], results[False], strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_sums_send_only_gradients_in_backward(comm):
    """No features are fetched again, and inputs without gradient send nothing back."""
    graph = distribute(power_law(), comm)
    graph.execution.fewest_rows = False
    forward, backward = boundary(graph)
    x = local(graph, torch.randn(300, 7)).requires_grad_()
    y = neighbour_sum(graph, x)
    assert sent(graph) == FLOAT * 7 * forward
    before = sent(graph)
    y.sum().backward()
    assert sent(graph, before) == FLOAT * 7 * backward
    before = sent(graph)
    neighbour_sum(graph, x.detach()) @ torch.randn(7, 2, requires_grad=True)
    assert sent(graph, before) == FLOAT * 7 * forward


class Difference(nn.MessagePassing):
    def message(self, x_src, x_dst, edge):
        return torch.tanh(x_src - x_dst)


STREAMED = {
    "sum": lambda: nn.GINConv(torch.nn.Identity()),
    "max": lambda: nn.SAGEConv(12, 8, aggr="max"),
    "gat": lambda: nn.GATConv(12, 4, 2),
    "gatv2": lambda: nn.GATv2Conv(12, 4, 2),
    "relations": lambda: nn.RGCNConv(12, 8, 3),
    "messages": Difference,
}
KEPT = ("gat", "gatv2", "messages")  # whose backward returns gradients of rows that were kept


@pytest.mark.parametrize("mode", ["sar", "sa", "oneshot"])
@pytest.mark.parametrize("name", STREAMED)
def test_messages_progress_between_pieces_of_work(comm, monkeypatch, name, mode):
    """The exchange begins before local work; local and remote work both make progress."""
    events = []

    def record(kind: type, method: str, event: str) -> None:
        plain = getattr(kind, method)

        def recorded(*args, **options):
            events.append(event)
            return plain(*args, **options)

        monkeypatch.setattr(kind, method, recorded)

    record(Exchange, "__init__", "begin")
    record(Exchange, "progress", "progress")
    record(Exchange, "_pack", "packed")
    record(Ring, "send", "sent")
    record(Arrival, "__init__", "arrival")
    whole = random_graph(300, 6000, width=12, num_relations=3, symmetric=True)
    graph = distribute(whole, comm, halo_buffer=8192, mode=mode)
    x = graph.features.clone().requires_grad_()
    STREAMED[name]()(graph, x).sum().backward()
    assert events.count("begin") == 2 and events[0] == "begin"
    peers = sum(len(rows) > 0 for rows in graph.in_edges.send_rows)
    assert events.count("arrival") >= 2 * peers
    # What rows were kept for makes gradients as they are packed: each is sent before the next.
    assert all(follow(events, "packed", "sent"))
    returns = mode != "sar" and name in KEPT
    backward = len(events) - events[::-1].index("begin") - 1
    worked_on = [event for event in events if event not in ("packed", "sent")]
    if returns:  # and what arrives is only added
        worked_on = [
            event
            for place, event in enumerate(events)
            if event not in ("packed", "sent") and not (place > backward and event == "arrival")
        ]
    moved_on = [*follow(worked_on, "begin", "progress"), *follow(worked_on, "arrival", "progress")]
    assert all(moved_on) or not graph.num_local_nodes


def follow(events: list[str], event: str, wanted: str) -> list[bool]:
    """Return for each `event` whether `wanted` comes next."""
    return [
        after == wanted
        for one, after in zip(events, [*events[1:], ""], strict=True)
        if one == event
    ]
