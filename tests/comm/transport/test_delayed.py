"""A link of given bandwidth and latency: how it is written, and what it delays."""

from __future__ import annotations

import time

import pytest
import torch
from tests.graphs import collect, distribute, local, random_graph

from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport.choice import choose_transport
from hpcgnn.comm.transport.delayed import DelayedTransport, Link
from hpcgnn.comm.transport.host import HostTransport
from hpcgnn.errors import InputError
from hpcgnn.nn import GATConv

SLOW = Link(1_000_000, 0.02)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("10GB/s,5us", Link(10**10, 5e-6)),
        (" 1.5 GiB/s, 2ms ", Link(3 << 29, 2e-3)),
        ("200kB/s", Link(200_000, 0.0)),
    ],
)
def test_descriptions_of_links_are_parsed(text, link):
    assert Link.parse(text) == link


@pytest.mark.parametrize(
    "text",
    [
        "10GB",
        "10GB/s,",
        "10GB/s,5",
        "10GB/s,5us,5us",
        "0GB/s",
        "-1GB/s,1us",
        "GB/s,1us",
        "1GB/s,11s",
        "1GB/s,nans",
        "1GB/s,1..2us",
        "fast",
    ],
)
def test_invalid_links_are_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"HPCGNN_LINK takes .* like 10GB/s,5us"):
        Link.parse(text)


@pytest.mark.mpi
def test_an_invalid_link_on_one_rank_ends_all_ranks(comm, monkeypatch):
    monkeypatch.setenv("HPCGNN_LINK", "10GB/s,5us" if comm.rank else "slow")
    with pytest.raises(InputError, match="HPCGNN_LINK"):
        choose_transport(comm, torch.device("cpu"))
    monkeypatch.setenv("HPCGNN_LINK", "2GB/s,1ms")
    chosen = choose_transport(comm, torch.device("cpu"))
    assert chosen.name == "host, delayed to 2 GB/s, 1000 us"
    monkeypatch.delenv("HPCGNN_LINK")
    assert isinstance(choose_transport(comm, torch.device("cpu")), HostTransport)


@pytest.mark.mpi
def test_messages_share_the_link_of_their_rank(comm):
    """Two messages of 30 kB to each peer, at 1 MB/s and 20 ms: none arrives too early."""
    size, rows = comm.size, 7500
    outgoing = [
        Outgoing(peer, rows, lambda out: out.fill_(comm.rank))
        for peer in ring_order(comm.rank, size, +1)
        for _ in range(2)
    ]
    incoming = [Incoming(peer, rows) for peer in ring_order(comm.rank, size, -1) for _ in range(2)]
    ring = Ring(comm, prefetch=2, transport=DelayedTransport(HostTransport(), SLOW))
    comm.barrier()
    began, came = time.perf_counter(), []
    for arrival in Exchange(ring, outgoing, incoming, 1, torch.float32):
        assert torch.all(arrival.rows_MF == incoming[arrival.index].peer)
        came.append(time.perf_counter() - began)
    expected = [0.03 * (number + 1) + 0.02 for number in range(len(incoming))]
    assert all(t > at - 0.01 for t, at in zip(came, expected, strict=True)), came


@pytest.mark.mpi
def test_a_slow_link_does_not_change_results(comm):
    whole, found = random_graph(200, 1500), []
    torch.manual_seed(3)
    layer = GATConv(5, 4, heads=2, layer=1)
    link = Link(20_000_000, 1e-4)
    for transport in (HostTransport(), DelayedTransport(HostTransport(), link)):
        graph = distribute(whole, comm, halo_buffer=8192)
        graph.ring.transport = transport
        x = local(graph, whole.features).requires_grad_()
        out = layer(graph, x)
        (out * out).sum().backward()
        found.append((collect(graph, out), collect(graph, x.grad)))
    for slow, plain in zip(found[1], found[0], strict=True):
        assert torch.equal(slow, plain)


def test_slots_of_another_transport_are_refused():
    with pytest.raises(TypeError):
        DelayedTransport(HostTransport(), SLOW).release(HostTransport().slot(8, sends=False))
