"""Errors during an exchange: later operations give right results, or are refused."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
import torch
from mpi4py import MPI
from tests.comm.transport.test_transport import TRANSPORTS, Sluggish
from tests.graphs import distribute, local, random_graph

from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.liveness import wait, watchdog
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import CommunicationError
from hpcgnn.nn import MessagePassing
from hpcgnn.sar.aggregation import neighbour_sum
from hpcgnn.sar.attention import AttentionSettings
from hpcgnn.sar.gat import attention
from hpcgnn.system import resident_memory

pytestmark = pytest.mark.mpi
NODES, WIDTH = 400, 16


class Failing(MessagePassing):
    """A layer that raises in the `fails_at`-th call of `message`."""

    def __init__(self, fails_at: int) -> None:
        super().__init__("sum", piece=200)
        self.calls, self.fails_at = 0, fails_at

    def message(self, x_src, x_dst, edge):
        self.calls += 1
        if self.calls == self.fails_at:
            raise ValueError("a fault of the caller's")
        return x_src * 1.0


@pytest.fixture
def whole():
    return random_graph(NODES, 8 * NODES, width=WIDTH)


@pytest.fixture(params=["host", "ipc"])
def graph(request, comm, whole):
    found = distribute(whole, comm, halo_buffer=4096)
    if request.param == "ipc":
        found.ring.transport = TRANSPORTS["ipc"](Sluggish((2, 1, 5)), comm)
    return found


def check(graph, whole, message_passing):
    """Compare sums and gradients with dense ones, with other numbers than before."""
    dense = whole.dense(False)
    for factor in (3.0, -2.0):
        x = (local(graph, whole.features) * factor).requires_grad_()
        expected = (dense @ torch.from_numpy(whole.features).double() * factor)[graph.node_ids]
        for y in (message_passing(graph, x), neighbour_sum(graph, x, weighted=False)):
            torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
            x.grad = None
            y.sum().backward()
            counts = dense.sum(0)[graph.node_ids, None].expand(-1, WIDTH)
            torch.testing.assert_close(x.grad.double(), counts)


def attempt(step) -> BaseException | None:
    try:
        step()
    except (ValueError, RuntimeError, CommunicationError) as error:
        return error
    return None


# Every pair of two of these.
FAILURES = [
    (kind, *mode, (i + j) % 2 == 1)
    for i, kind in enumerate(("host", "ipc"))
    for j, mode in enumerate([("sar", 0), ("sar", 5), ("sa", 1), ("oneshot", 1)])
]


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "mode", "later", "backward"), FAILURES, indirect=["graph"])
def test_ranks_recover_after_failing_at_different_messages(
    comm, graph, whole, mode, later, backward
):
    graph.execution.mode = mode
    x, layer = local(graph, whole.features).requires_grad_(), Failing(0)
    y = layer(graph, x)
    first, layer.calls = 1 + min(later * comm.rank, layer.calls - 1), 0
    layer.fails_at = first
    attempt(lambda: y.sum().backward() if backward else layer(graph, x))
    attempt(lambda: comm.barrier())  # informs ranks that had nothing to do and didn't fail
    layer.fails_at = 0
    check(graph, whole, layer)


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_a_failure_of_one_rank_is_reported_to_the_others(comm, graph, whole, fails_at):
    """The others are informed in this operation or the next; none continues with wrong rows."""
    if comm.size == 1:
        pytest.skip("no others")
    layer = Failing(fails_at if comm.rank == 0 else 0)
    first = attempt(lambda: layer(graph, local(graph, whole.features)))
    second = attempt(comm.barrier)
    assert isinstance(first, ValueError) == (comm.rank == 0)
    assert comm.rank == 0 or "abandoned" in str(first or second)
    layer.fails_at = 0
    check(graph, whole, layer)


@pytest.mark.parametrize("kind", ["host", "staged", "ipc", "ipc and staged"])
def test_an_exchange_after_failing_callbacks_gets_its_own_rows(comm, kind):
    """Whatever the callbacks of an exchange raise, the next exchange gets its own rows."""
    ring, rows = Ring(comm, halo_buffer=4096, prefetch=2), 5
    if kind != "host":
        ring.transport = TRANSPORTS[kind](Sluggish((2, 1, 5)), comm)
    peers = [p for p in ring_order(comm.rank, comm.size, +1) for _ in range(7)]
    sources = [p for p in ring_order(comm.rank, comm.size, -1) for _ in range(7)]

    def swap(mark: float, fails_at: str, number: int) -> None:
        calls = dict.fromkeys(("pack", "reply", "arrival"), 0)

        def count(name: str) -> None:
            calls[name] += 1
            if name == fails_at and calls[name] == number:
                raise RuntimeError("a fault")

        def pack(out: torch.Tensor) -> None:
            count("pack")
            out.fill_(mark + comm.rank)

        def on_reply(index: int, reply: torch.Tensor) -> None:
            count("reply")
            assert (reply == -mark - comm.rank).all()

        exchange = Exchange(
            ring,
            [Outgoing(p, rows, pack) for p in peers],
            [Incoming(p, rows) for p in sources],
            4,
            torch.float32,
            reply_width=2,
            on_reply=on_reply,
        )
        for arrival in exchange:
            count("arrival")
            assert (arrival.rows_MF == mark + sources[arrival.index]).all()
            arrival.reply(-arrival.rows_MF[:, :2])

    for mark, (name, number) in enumerate(
        [("pack", 1), ("pack", 4), ("reply", 1), ("reply", 6), ("arrival", 1), ("arrival", 7)]
    ):
        error = attempt(lambda m=mark, n=name, k=number: swap(1000.0 * m, n, k))
        assert comm.size == 1 or error is not None
        comm.barrier()
        swap(1000.0 * mark + 500, "", 0)


def test_a_layer_can_be_retried_after_running_out_of_memory(comm, graph, whole, monkeypatch):
    x = local(graph, whole.features)
    torch.manual_seed(0)
    weights = torch.randn(6, WIDTH), torch.randn(2, 3), torch.randn(2, 3)
    settings = AttentionSettings(heads=2)
    expected = attention(graph, x, *weights, None, None, settings)
    from hpcgnn import kernels

    real, calls = kernels.gat_forward, []

    def full(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(kernels, "gat_forward", full)
        attempt(lambda: attention(graph, -x, *weights, None, None, settings))
        attempt(comm.barrier)
    assert torch.equal(attention(graph, x, *weights, None, None, settings), expected)


def test_an_operation_inside_an_exchange_is_refused(comm, graph, whole):
    class Nested(MessagePassing):
        def message(self, x_src, x_dst, edge):
            comm.barrier()
            return x_src

    if comm.size != 2:
        pytest.skip("ranks call a different number of times")
    with pytest.raises(CommunicationError, match="abandoned, since another operation began"):
        Nested("sum")(graph, local(graph, whole.features))


def test_operations_after_an_interrupted_wait_are_refused(comm, monkeypatch):
    made = Communicator(timeout=60)

    def interrupted(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(made._waiter, "any", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.barrier("roll call")
    for operation in (made.barrier, lambda: made.allreduce(1), lambda: made.alltoallv([])):
        with pytest.raises(
            CommunicationError, match=r"'roll call' was interrupted by KeyboardInterrupt"
        ):
            operation()
    with pytest.raises(CommunicationError, match="roll call"):
        Exchange(Ring(made), [], [], 1, torch.float32)


@pytest.fixture
def impatient(comm, monkeypatch):
    """A communicator whose ranks soon check for deadlocks, long before the timeout."""
    if comm.size == 1:
        pytest.skip("no others")
    monkeypatch.setattr(wait, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "MOST_PATIENCE", 0.5)
    return Communicator(timeout=300)


def test_a_rank_that_refuses_operations_informs_waiting_ranks(impatient, monkeypatch):
    def broken(*_args):
        raise ValueError("a fault")

    if impatient.rank == 0:
        with monkeypatch.context() as patched:
            patched.setattr(impatient._waiter, "any", broken)
            assert isinstance(attempt(lambda: impatient.barrier("roll call")), ValueError)
    for _ in range(2):  # the first may have completed
        error = attempt(lambda: impatient.barrier("roll call"))
    assert "'roll call' was interrupted by ValueError" in str(error)
    assert impatient.rank == 0 or "rank 0 can't continue" in str(error)


def test_a_deadlock_between_different_operations_is_reported(impatient):
    def there() -> None:
        impatient.wait_any([impatient.irecv(np.empty(1), 0, 5)], "there")

    start = time.monotonic()
    error = attempt(there if impatient.rank else lambda: impatient.barrier("here"))
    assert "'here'" in str(error) and "waiting in 'there'" in str(error)
    assert time.monotonic() - start < 60


def test_a_message_too_long_for_its_buffer_is_our_own_error(comm):
    made = Communicator(timeout=60)
    sent = made.isend(np.zeros(8, np.uint8), made.rank, 7)
    with pytest.raises(CommunicationError, match=r"'short': MPI says .*different places"):
        made.wait_any([made.irecv(np.empty(4, np.uint8), made.rank, 7)], "short")
    sent.Free()


def test_a_rank_that_restarts_an_epoch_alone_is_refused(comm, graph, whole):
    """Its message has the length that the others expect, but belongs to another layer."""
    if comm.size == 1:
        pytest.skip("no others")
    x = local(graph, whole.features)
    graph.set_epoch(1)
    neighbour_sum(graph, x, weighted=False)
    if comm.rank == 0:
        graph.set_epoch(1)
    first = attempt(lambda: neighbour_sum(graph, 2 * x, weighted=False))
    assert "out of step" in str(first or attempt(comm.barrier))
    graph.set_epoch(2)
    check(graph, whole, Failing(0))


@pytest.mark.parametrize("kind", ["host", "ipc"])
def test_short_messages_for_a_late_rank_wait_at_their_senders(comm, kind):
    """While the last rank is late, its memory grows by no more than a few slots' worth."""
    rows, width = 16, 64
    ring = Ring(comm, halo_buffer=4 * rows * width * 4)
    if kind == "ipc":
        ring.transport = TRANSPORTS[kind](Sluggish((1,)), comm)
    peers = ring_order(comm.rank, comm.size, +1), ring_order(comm.rank, comm.size, -1)

    def exchange(count: int) -> None:
        outgoing = [Outgoing(p, rows, lambda out: out.zero_()) for p in peers[0] * count]
        incoming = [Incoming(p, rows) for p in peers[1] * count]
        for _ in Exchange(ring, outgoing, incoming, width, torch.float32):
            pass

    exchange(20)  # MPI allocates memory for each pair of ranks at first use
    comm.barrier()
    grown = 0
    if comm.rank == comm.size - 1:
        before, end = resident_memory(), time.monotonic() + 0.7
        while time.monotonic() < end:
            comm.mpi.Iprobe(tag=9999)
            time.sleep(1e-4)
        grown = resident_memory() - before
    exchange(max(100, 400 // max(1, comm.size - 1)))  # 1.6 MB or more for the late one
    comm.barrier()
    assert grown < (1 << 20), f"{grown} bytes"


@pytest.mark.parametrize("settled", [False, True])
def test_a_communicator_is_not_freed_with_messages_under_way(comm, whole, settled):
    """MPICH would abort the process; once the exchange is completed it can be freed."""
    if comm.size != 2:
        pytest.skip("ranks without rows raise nothing")
    left = Communicator(comm.mpi)
    graph = distribute(whole, left, halo_buffer=4096)
    x = local(graph, whole.features)
    with pytest.raises(ValueError, match="a fault"):
        Failing(2)(graph, x)
    if settled:
        neighbour_sum(graph, x)
    mpi = left.mpi
    del left, graph
    newest = Communicator(comm.mpi)  # that one is watched until the process ends
    gc.collect()
    assert (mpi == MPI.COMM_NULL) == settled
    newest.close()
