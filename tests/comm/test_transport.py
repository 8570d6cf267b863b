"""Transports whose device is played by host memory: copies, their order and their delays are real.

`Sluggish` stands for a GPU with copy streams: what is copied to the wire arrives only when its
event has been asked for often enough, and a wire that MPI must not touch yet is checked not to
change.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.graphs import collect, distribute, local, random_graph

from hpcgnn.comm.ring import Exchange, Incoming, Outgoing, Ring, ring_order
from hpcgnn.comm.transport import CudaAwareTransport, HostTransport, StagedTransport
from hpcgnn.sar.extremes import neighbour_max
from hpcgnn.sar.sums import neighbour_sum


class Event:
    def __init__(self, asked_before_done, at_end=None):
        self.left, self.at_end = asked_before_done, at_end

    def query(self):
        self.left -= 1
        if self.left <= 0 and self.at_end is not None:
            self.at_end()
            self.at_end = None
        return self.left <= 0


class Sluggish:
    """Copies that take a while, in order; `late` events were not done when first asked."""

    def __init__(self, delays):
        self.delays = itertools.cycle(delays)
        self.late = 0

    def near(self, num_bytes):
        return torch.full((num_bytes,), 171, dtype=torch.uint8)

    wire = near

    def mark(self):
        return self._event(None)

    def to_wire(self, wire, near, after):
        return self._event(lambda: wire.copy_(near))

    def to_near(self, near, wire, after):
        near.copy_(wire)
        arrived = wire.clone()

        def still_there():
            assert torch.equal(wire, arrived), "MPI wrote to a wire that was still being copied"

        return self._event(still_there)

    def _event(self, at_end):
        delay = next(self.delays)
        self.late += delay > 1
        return Event(delay, at_end)


TRANSPORTS = {
    "staged": lambda copier: StagedTransport(copier),
    "cuda-aware": lambda copier: CudaAwareTransport(copier),
}


@pytest.mark.mpi
@pytest.mark.parametrize("kind", TRANSPORTS)
@pytest.mark.parametrize("delays", [(1,), (3, 1, 7), (40,)])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_sums_and_maxima_through_a_slow_device(comm, kind, delays, prefetch):
    whole = random_graph(300, 2000, weighted=True)
    results = []
    copier = Sluggish(delays)
    for transport in (HostTransport(), TRANSPORTS[kind](copier)):
        graph = distribute(whole, comm, halo_buffer=4096, prefetch=prefetch)
        graph.ring.transport = transport
        x = local(graph, whole.features).requires_grad_()
        total = neighbour_sum(graph, x) + neighbour_max(graph, x)
        (total * total).sum().backward()
        results.append((collect(graph, total), collect(graph, x.grad)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
    late = comm.allreduce(copier.late)
    assert late > 0 or comm.size == 1 or max(delays) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("kind", TRANSPORTS)
def test_replies_through_a_slow_device(comm, kind):
    """Every rank gets back what it sent, plus the number of the rank that answered."""
    ring = Ring(
        comm, halo_buffer=4096, prefetch=2, transport=TRANSPORTS[kind](Sluggish((5, 1, 2, 30)))
    )
    pieces, rows = 6, 3
    numbers = {
        (peer, k): torch.arange(rows * 4.0).view(rows, 4) + 100 * comm.rank + 10 * k
        for peer in range(comm.size)
        for k in range(pieces)
    }
    order = [(p, k) for p in ring_order(comm.rank, comm.size, +1) for k in range(pieces)]
    outgoing = [
        Outgoing(p, rows, lambda out, key=(p, k): out.copy_(numbers[key])) for p, k in order
    ]
    peers = [p for p in ring_order(comm.rank, comm.size, -1) for _ in range(pieces)]
    answered = []

    def on_reply(index, reply):
        peer, k = order[index]
        assert torch.equal(reply, numbers[peer, k] + peer)
        answered.append(index)

    incoming = [Incoming(p, rows) for p in peers]
    exchange = Exchange(
        ring, outgoing, incoming, 4, torch.float32, reply_width=4, on_reply=on_reply
    )
    for arrival in exchange:
        k = arrival.index % pieces
        sent = torch.arange(rows * 4.0).view(rows, 4) + 100 * peers[arrival.index] + 10 * k
        assert torch.equal(arrival.rows_HF, sent)
        arrival.reply(arrival.rows_HF + comm.rank)
    assert answered == list(range(len(order)))


@pytest.mark.parametrize("kind", TRANSPORTS)
def test_slots_of_another_transport_are_refused(kind):
    with pytest.raises(TypeError):
        TRANSPORTS[kind](Sluggish((1,))).release(HostTransport().slot(8))
