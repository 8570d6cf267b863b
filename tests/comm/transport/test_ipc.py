"""CUDA IPC: whose memory is read when, what is freed, and where it is chosen at all."""

from __future__ import annotations

import gc

import pytest
import torch
from tests.comm.transport.test_transport import Sluggish
from tests.fake_device.ipc import FakeRuntime, HostMemory

from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import Ring
from hpcgnn.comm.transport import choice, neighbours
from hpcgnn.comm.transport.ipc import IpcTransport
from hpcgnn.comm.transport.shared import CudaMemory, Exports
from hpcgnn.errors import CommunicationError, InputError

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.mpi


def exchange(ring, rows: int, width: int = 64, reply_width: int = 0) -> None:
    """Exchange two messages with each other rank, and replies."""
    comm = ring.comm
    outgoing = [
        Outgoing(p, rows, lambda out, p=p: out.fill_(100 * comm.rank + p))
        for p in ring_order(comm.rank, comm.size, +1) * 2
    ]
    incoming = [Incoming(p, rows) for p in ring_order(comm.rank, comm.size, -1) * 2]
    arrivals = Exchange(ring, outgoing, incoming, width, torch.float32, reply_width=reply_width)
    for arrival in arrivals:
        assert torch.all(arrival.rows_MF == 100 * incoming[arrival.index].peer + comm.rank)
        if reply_width:
            arrival.reply(arrival.rows_MF[:, :reply_width])


def all_near(comm, runtime: FakeRuntime, delays=(1, 4)) -> IpcTransport:
    return IpcTransport(Sluggish(delays), HostMemory(runtime), frozenset(range(comm.size)))


def test_replaced_memory_is_freed_when_all_ranks_have_closed_it(comm):
    runtime = FakeRuntime()
    ring = Ring(comm, halo_buffer=64 << 20, transport=all_near(comm, runtime))
    sizes = [100, 9_000, 20_000, 100]  # rows of 256 bytes: up to 5 MiB a slot
    for rows in sizes:
        for _ in range(2):
            exchange(ring, rows)
    if comm.size == 1:
        assert runtime.taken == 0
        return
    assert runtime.taken == 3 and runtime.early == 0
    assert runtime.held == 1 + (comm.size - 1)  # its own, and one per neighbour
    assert runtime.opened == 3 * (comm.size - 1)
    moved = 2 * 2 * sum(sizes) * 256 * (comm.size - 1)
    assert ring.bytes_sent == moved and runtime.copied == 2 * moved  # read again, to compare
    del ring
    gc.collect()
    assert runtime.held == 0


def test_alternating_widths_reuse_the_same_memory(comm):
    """Layers, their gradients and evaluation use the same memory, divided into slots as needed."""
    runtime = FakeRuntime()
    ring = Ring(comm, halo_buffer=8 << 20, transport=all_near(comm, runtime))
    counts = []
    for _ in range(4):
        for width, reply_width in ((64, 0), (56, 8), (32, 32)):
            exchange(ring, ring.rows_per_message(width, torch.float32, reply_width), 8, 0)
            exchange(ring, 7000, width, reply_width)
        counts.append((runtime.taken, runtime.opened))
    assert counts[1:] == counts[:1] * 3 and ring.peak_bytes <= 8 << 20


def test_rows_are_readable_once_packed_and_kept_until_read(comm):
    sender = all_near(comm, FakeRuntime(), delays=(3,))
    sender.begin()
    sender.reserve([64])
    slot = sender.slot(64, sends=True)
    sender.before_send(slot, 64, 0)
    assert [sender.may_send(slot) for _ in range(3)] == [False, False, True]
    with pytest.raises(RuntimeError, match="more was used"):
        for _ in range(9000):
            sender.slot(256, sends=True)
    with pytest.raises(RuntimeError, match="reserved"):
        Exports(HostMemory(FakeRuntime())).take(8)


def test_a_failed_allocation_on_one_rank_is_raised_on_all(comm):
    """The error reaches all ranks, and all can continue once there is memory again."""
    runtime = FakeRuntime()
    ring = Ring(comm, halo_buffer=64 << 20, transport=all_near(comm, runtime))
    exchange(ring, 100)
    if comm.size == 1:
        return
    runtime.full = comm.rank == 0
    errors = []
    for step in (lambda: exchange(ring, 30_000), comm.barrier):
        try:
            step()
        except (torch.OutOfMemoryError, CommunicationError) as error:
            errors.append(error)
        runtime.full = False
    assert isinstance(errors[0], torch.OutOfMemoryError) == (comm.rank == 0)
    assert comm.rank == 0 or "abandoned" in str(errors[0])
    exchange(ring, 30_000)
    assert runtime.early == 0


class Gpu(Sluggish):
    """A device with the name of a GPU, whose memory is host memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__((1,))
        self.device = device


@pytest.fixture
def machine(monkeypatch):
    """A shared GPU; `machine(nodes)` sets the node of each rank."""
    runtime = FakeRuntime()
    monkeypatch.setattr(choice, "CudaCopier", Gpu)
    monkeypatch.setattr(choice, "_memory", lambda device: HostMemory(runtime))
    monkeypatch.setattr(choice, "why_not", lambda comm, device: "MPI knows of no GPU")
    monkeypatch.delenv("HPCGNN_LINK", raising=False)
    return runtime


@pytest.mark.parametrize("wanted", ["auto", "ipc"])
def test_ipc_is_chosen_where_neighbours_can_read_each_other(comm, machine, wanted, capsys):
    transport = choice.choose_transport(comm, GPU, wanted)
    if comm.size == 1 and wanted == "auto":
        assert transport.name.startswith("staged")
        return
    assert transport.name == "CUDA IPC"
    assert machine.copied == (comm.size - 1) * ((4 << 10) + (8 << 20))
    assert machine.held == machine.early == 0
    exchange(Ring(comm, transport=transport), 50)
    assert comm.rank or "messages: CUDA IPC (verified by reading)" in capsys.readouterr().out


def test_between_nodes_messages_are_staged(comm, machine, monkeypatch):
    monkeypatch.setattr(neighbours, "machine", lambda: f"node {comm.rank % 2}")
    if comm.size == 2:
        assert choice.choose_transport(comm, GPU).name == "staged through pinned host memory"
        with pytest.raises(
            InputError, match="--transport ipc is not available: no two ranks share"
        ):
            choice.choose_transport(comm, GPU, "ipc")
    if comm.size > 2:
        transport = choice.choose_transport(comm, GPU, "ipc")
        assert transport.name.startswith("CUDA IPC within nodes, staged through")
        exchange(Ring(comm, transport=transport), 50)
        near = len(range(comm.rank % 2, comm.size, 2)) - 1
        assert machine.copied == near * ((4 << 10) + (8 << 20) + 2 * 2 * 50 * 256)


def fails(*_):
    raise RuntimeError("cudaErrorMapBufferObjectFailed: mapping of buffer object failed")


def torn(runtime):
    """Copy incompletely."""
    whole = FakeRuntime.memcpyAsync
    runtime.memcpyAsync = lambda to, source, size, *rest: whole(
        runtime, to, source, size // 2, *rest
    )


FAULTS = {
    "rank .*: cudaErrorMapBufferObjectFailed": lambda r: setattr(r, "ipcGetMemHandle", fails),
    "rank .* can't be read: cudaErrorMap": lambda r: setattr(r, "ipcOpenMemHandle", fails),
    "4096 bytes of rank .* were read incorrectly": torn,
    "CUDA out of memory": lambda r: setattr(r, "full", True),
}


@pytest.mark.parametrize("problem", FAULTS)
def test_ipc_is_not_chosen_if_one_rank_cannot_use_it(comm, machine, problem, capsys):
    if comm.size == 1:
        return
    if comm.rank == comm.size - 1:
        FAULTS[problem](machine)
    with pytest.raises(InputError, match=f"--transport ipc is not available: .*{problem}"):
        choice.choose_transport(comm, GPU, "ipc")
    assert choice.choose_transport(comm, GPU).name == "staged through pinned host memory"
    assert comm.rank or "MPI knows of no GPU; no CUDA IPC: rank" in capsys.readouterr().out
    assert machine.held == 0


def test_ipc_needs_cupy(comm, machine, monkeypatch):
    monkeypatch.setattr(choice, "_memory", lambda device: None)
    with pytest.raises(InputError, match="CuPy is not installed"):
        choice.choose_transport(comm, GPU, "ipc")


@pytest.mark.gpu
def test_ranks_sharing_a_real_gpu_exchange_rows(comm, gpu):
    """Ranks share one GPU and read the rows that the others packed on it."""
    memory = CudaMemory(gpu)
    near = neighbours.of_all(comm)[comm.rank]
    assert neighbours.why_not(comm, memory, near) == ""
    transport = IpcTransport(choice.CudaCopier(gpu), memory, near)
    ring = Ring(comm, halo_buffer=8 << 20, transport=transport)
    for width, reply_width in ((64, 0), (56, 8), (32, 32)):
        exchange(ring, 7000, width, reply_width)
