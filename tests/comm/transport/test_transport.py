"""Transports whose fake device is host memory: copies, their order and their delays are real.

`Sluggish` stands for a GPU with copy streams: what is copied to the wire arrives only when its
event has been asked for often enough, and a wire that MPI must not touch yet is checked not to
change.
"""

from __future__ import annotations

import itertools
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tests.fake_device.ipc import FakeRuntime, HostMemory
from tests.graphs import collect, distribute, local, random_graph

from hpcgnn.comm import device
from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport import choice, staged
from hpcgnn.comm.transport.choice import CudaAwareTransport
from hpcgnn.comm.transport.host import HostTransport
from hpcgnn.comm.transport.ipc import IpcTransport
from hpcgnn.comm.transport.staged import StagedTransport
from hpcgnn.errors import InputError, OutOfMemoryError
from hpcgnn.sar.aggregation import neighbour_max, neighbour_sum


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
    """Copies that take a while, in order; `late` counts events not done when first queried."""

    def __init__(self, delays):
        self.delays = itertools.cycle(delays)
        self.late = self.packed = self.waits = 0

    def near(self, num_bytes):
        return torch.full((num_bytes,), 171, dtype=torch.uint8)

    wire = near

    def mark(self):
        return self._event(None)

    @contextmanager
    def packing(self, after):
        assert isinstance(after, Event)
        yield
        self.packed += 1

    def to_wire(self, wire, near, after):
        return self._event(lambda: wire.copy_(near))

    def to_near(self, near, wire, after):
        near.copy_(wire)
        arrived = wire.clone()

        def still_there():
            assert torch.equal(wire, arrived), "MPI wrote to a wire that was still being copied"

        return self._event(still_there)

    def fetch(self, copy, after):
        read, (near, address) = copy.func, copy.args
        copy()
        fetched = near.clone()

        def still_there():
            again = torch.empty_like(fetched)
            read(again, address)
            assert torch.equal(again, fetched), "a sender wrote to what was still being copied"

        return self._event(still_there)

    def wait(self, event):
        self.waits += 1
        while not event.query():
            pass

    def _event(self, at_end):
        delay = next(self.delays)
        self.late += delay > 1
        return Event(delay, at_end)


def ipc(copier, comm):
    return IpcTransport(copier, HostMemory(FakeRuntime()), frozenset(range(comm.size)))


def two_nodes(copier, comm):
    """Put even and odd ranks on two nodes."""
    near = frozenset(range(comm.rank % 2, comm.size, 2))
    return IpcTransport(copier, HostMemory(FakeRuntime()), near, StagedTransport(copier))


TRANSPORTS = {
    "staged": lambda copier, comm: StagedTransport(copier),
    "cuda-aware": lambda copier, comm: CudaAwareTransport(copier),
    "ipc": ipc,
    "ipc and staged": two_nodes,
}


# Every pair of two of these.
SLOW = [
    (kind, delays, (1, 3)[(i + j) % 2])
    for i, kind in enumerate(TRANSPORTS)
    for j, delays in enumerate([(1,), (3, 1, 7), (40,)])
]


@pytest.mark.mpi
@pytest.mark.parametrize(("kind", "delays", "prefetch"), SLOW)
def test_sums_and_maxima_through_a_slow_device(comm, kind, delays, prefetch):
    whole = random_graph(300, 2000, weighted=True)
    results = []
    copier = Sluggish(delays)
    for transport in (HostTransport(), TRANSPORTS[kind](copier, comm)):
        graph = distribute(whole, comm, halo_buffer=4096, prefetch=prefetch)
        graph.ring.transport = transport
        x = local(graph, whole.features).requires_grad_()
        total = neighbour_sum(graph, x) + neighbour_max(graph, x)
        (total * total).sum().backward()
        results.append((collect(graph, total), collect(graph, x.grad)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
    assert comm.allreduce(copier.packed) > 0 or comm.size == 1
    late = comm.allreduce(copier.late)
    assert late > 0 or comm.size == 1 or max(delays) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("kind", TRANSPORTS)
def test_replies_through_a_slow_device(comm, kind):
    """Every rank gets back what it sent, plus the number of the rank that answered."""
    transport = TRANSPORTS[kind](Sluggish((5, 1, 2, 30)), comm)
    ring = Ring(comm, halo_buffer=4096, prefetch=2, transport=transport)
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
        assert torch.equal(arrival.rows_MF, sent)
        arrival.reply(arrival.rows_MF + comm.rank)
    assert answered == list(range(len(order)))


def test_short_messages_are_posted_further_ahead(comm):
    ring = Ring(comm, halo_buffer=1 << 20, prefetch=2)
    assert [ring.depth(size) for size in (0, 1, 1 << 17)] == [2, 2, 2]
    ring.transport = StagedTransport(Sluggish((1,)))
    assert [ring.depth(size) for size in (0, 1, 1 << 16, 1 << 17, 1 << 18)] == [2, 16, 8, 4, 2]


def test_pinned_memory_has_the_requested_size(monkeypatch):
    """It is registered with its exact size, and freed when no view of it is left."""
    held = {}
    cudart = SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: held.update({address: size}) or 0,
        cudaHostUnregister=lambda address: held.pop(address),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    x = torch.arange(30.0).view(6, 5)
    copy = staged.pinned_copy(x.t())
    assert torch.equal(copy, x.t()) and list(held.values()) == [120]
    view = copy[2:, 1]
    gone = weakref.ref(copy)
    del copy
    assert gone() is None and len(held) == 1
    view.fill_(3)
    del view
    assert not held
    assert staged.pinned(0).numel() == 0
    cudart.cudaHostRegister = lambda *_: 2
    with pytest.raises(OutOfMemoryError, match="pinned"):
        staged.pinned(4096)


@pytest.mark.mpi
def test_expandable_segments_are_not_given_to_mpi(comm, monkeypatch):
    monkeypatch.setattr(choice, "says_cuda_aware", lambda: True)
    sizes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(choice, "round_trip", lambda comm, sent, *_: sizes.append(len(sent)) or "")
    cpu = torch.device("cpu")
    assert choice.why_not(comm, cpu) == ""
    assert sizes == ([1 << 10, 1 << 21] if comm.size > 1 else [])
    if comm.rank == comm.size - 1:
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native, expandable_segments : True")
    assert "expandable_segments: remove it from PYTORCH_ALLOC_CONF" in choice.why_not(comm, cpu)


@pytest.mark.parametrize("kind", TRANSPORTS)
def test_slots_of_another_transport_are_refused(comm, kind):
    with pytest.raises(TypeError):
        TRANSPORTS[kind](Sluggish((1,)), comm).release(HostTransport().slot(8, sends=False))


@pytest.mark.mpi
def test_the_device_round_trip_detects_changed_rows(comm, monkeypatch):
    sent = torch.arange(50.0) + comm.rank
    got, back = torch.zeros(50), torch.zeros(50)
    assert choice.round_trip(comm, sent, got, back) == ""
    assert torch.equal(back, sent)
    honest = comm.isend
    kept = []

    def garbled(buffer, peer, tag):
        kept.append(buffer + (comm.rank == 0))
        return honest(kept[-1], peer, tag)

    monkeypatch.setattr(comm, "isend", garbled)
    problems = comm.allgather(choice.round_trip(comm, sent, got, back))
    assert any("changed" in problem for problem in problems)


@pytest.mark.mpi
def test_without_a_gpu_messages_stay_on_the_host(comm, capsys):
    assert choice.choose_transport(comm, torch.device("cpu"), "cuda-aware").name == "host"
    with pytest.raises(InputError, match="--transport"):
        choice.choose_transport(comm, torch.device("cpu"), "pigeon")
    assert capsys.readouterr().out == ""


def test_cray_mpich_is_recognised_by_its_variable(monkeypatch):
    monkeypatch.setattr(
        choice.MPI, "Get_library_version", lambda: "MPI VERSION : CRAY MPICH version 8.1.28"
    )
    for value, expected in [("1", True), ("0", False), (None, False)]:
        if value is None:
            monkeypatch.delenv("MPICH_GPU_SUPPORT_ENABLED")
        else:
            monkeypatch.setenv("MPICH_GPU_SUPPORT_ENABLED", value)
        assert choice.says_cuda_aware() is expected


def test_the_loaded_mpi_library_is_queried():
    """The wheels of MPICH and Open MPI are built without CUDA and say so."""
    assert choice._mpi_libraries()
    if choice._query_function() is not None:
        assert choice._query_function()() in (0, 1)


@pytest.mark.mpi
def test_ranks_are_assigned_gpus_round_robin(comm, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(device, "visible_gpus", lambda: 2)
    assert device.pick_device(comm) == torch.device("cuda", comm.rank % 2)
    assert taken == [torch.device("cuda", comm.rank % 2)]
    assert device.pick_device(comm, "cpu") == torch.device("cpu")
    monkeypatch.setattr(device, "visible_gpus", lambda: int(comm.rank + 1 < comm.size))
    assert device.pick_device(comm) == torch.device("cpu")
    with pytest.raises(InputError, match=f"rank {comm.size - 1}: --device cuda"):
        device.pick_device(comm, "cuda")
