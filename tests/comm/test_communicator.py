"""Collective operations compared with mpi4py's and NumPy, on any number of ranks."""

from __future__ import annotations

import gc
import signal
import time

import numpy as np
import pytest
import torch
from mpi4py import MPI

from hpcgnn.comm import collectives
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import CommunicationError, HpcgnnError, InputError, NumericalError

pytestmark = pytest.mark.mpi

SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (9, 5), (2, 3, 4), (257,), (40_001,)]


def values(rank: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    generator = np.random.default_rng([rank, *shape])
    if np.dtype(dtype).kind == "f":
        return (generator.standard_normal(shape) * 10.0 ** generator.integers(0, 6)).astype(dtype)
    return generator.integers(-100, 100, shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_allreduce_arrays(comm, shape):
    for dtype in ("f4", "f8", "i4", "i8", "u1"):
        rows = [values(rank, shape, dtype) for rank in range(comm.size)]
        before = rows[comm.rank].copy()
        for op, fold in [("sum", np.sum), ("min", np.min), ("max", np.max)]:
            got = comm.allreduce(rows[comm.rank], op)
            exact = fold(np.stack(rows).astype("f8" if dtype[0] == "f" else dtype), axis=0)
            np.testing.assert_allclose(got, exact.astype(dtype), rtol=1e-6, atol=1e-30)
            assert np.asarray(got).dtype == dtype and np.shape(got) == shape
        np.testing.assert_array_equal(rows[comm.rank], before)


@pytest.mark.parametrize("count", [3, 5_000, 200_003])
def test_allreduce_is_the_same_bits_everywhere_and_every_time(comm, monkeypatch, count):
    mine = values(comm.rank, (count,), "f4")
    sums = [comm.allreduce(mine).tobytes() for _ in range(3)]
    monkeypatch.setattr(collectives, "SEGMENT", 8_192)
    sums.append(comm.allreduce(mine).tobytes())
    assert len({*sums, *comm.mpi.allgather(sums[0])}) == 1


def test_allreduce_scalars_and_tensors(comm):
    total = comm.size * (comm.size - 1) // 2
    assert comm.allreduce(comm.rank) == total and type(comm.allreduce(1)) is int
    assert comm.allreduce(0.5) == 0.5 * comm.size and type(comm.allreduce(1.0)) is float
    assert comm.allreduce(2**62 if comm.rank == 0 else 0) == 2**62
    x_NF = torch.full((3, 4), float(comm.rank), requires_grad=True)
    got = comm.allreduce(x_NF.t(), "max")
    assert torch.equal(got, torch.full((4, 3), comm.size - 1.0)) and not got.requires_grad
    with pytest.raises(CommunicationError, match="mean"):
        comm.allreduce(1, "mean")


def test_objects_are_sent_by_broadcast_gather_and_allgather(comm, monkeypatch):
    monkeypatch.setattr(collectives, "PIECE_BYTES", 100)
    for root in range(comm.size):
        mine = {"rank": comm.rank, "rows": np.arange(50 * comm.rank)}
        got = comm.broadcast(mine, root)
        assert got["rank"] == root and len(got["rows"]) == 50 * root
        gathered = comm.gather("x" * comm.rank, root)
        assert gathered == (["x" * p for p in range(comm.size)] if comm.rank == root else None)
    assert comm.allgather((comm.rank, None)) == [(p, None) for p in range(comm.size)]


@pytest.mark.parametrize("tail", [(), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("piece_bytes", [5, 64, 1 << 20])
def test_alltoallv_delivers_rows(comm, monkeypatch, tail, piece_bytes):
    sent_bytes = []
    isend = comm.isend
    monkeypatch.setattr(comm, "isend", lambda b, *to: sent_bytes.append(b.nbytes) or isend(b, *to))

    def array(source: int, to: int) -> np.ndarray:
        length = (source * 5 + to * 3) % 8 * (source != to + 1)
        return values(source * 100 + to, (length, *tail), "f4")

    got = comm.alltoallv([array(comm.rank, p) for p in range(comm.size)], "test", piece_bytes)
    for source, rows in enumerate(got):
        np.testing.assert_array_equal(rows, array(source, comm.rank))
    assert all(0 < n <= piece_bytes for n in sent_bytes)


def test_alltoallv_bounds_what_is_in_flight(comm, monkeypatch):
    active, most = [], [0]

    def started(request):
        active[:] = [*filter(None, active), request]
        most[0] = max(most[0], len(active))
        return request

    isend, irecv = comm.isend, comm.irecv
    monkeypatch.setattr(comm, "isend", lambda *a: started(isend(*a)))
    monkeypatch.setattr(comm, "irecv", lambda *a: started(irecv(*a)))
    got = comm.alltoallv([np.full(1000 * p, comm.rank) for p in range(comm.size)], piece_bytes=80)
    assert [set(rows) for rows in got] == [{p} if comm.rank else set() for p in range(comm.size)]
    assert most[0] <= collectives.IN_FLIGHT


def test_alltoallv_refuses_mixed_arrays(comm):
    for wrong in ([np.zeros(1)] * (comm.size + 1), [np.zeros(())] * comm.size):
        with pytest.raises(CommunicationError, match="one dtype"):
            comm.alltoallv(wrong)


@pytest.mark.parametrize("kind", [InputError, NumericalError, ValueError])
def test_agree_raises_the_error_of_the_lowest_rank(comm, kind):
    comm.agree(None)
    for lowest in range(comm.size):
        error = kind(f"bad on {comm.rank}") if comm.rank >= lowest else None
        with pytest.raises(kind if issubclass(kind, HpcgnnError) else Exception) as caught:
            comm.agree(error)
        assert f"bad on {lowest}" in str(caught.value)
        assert type(caught.value) in (kind, HpcgnnError)
        assert (caught.value is error) == (comm.rank == lowest)
        surprise = comm.location.surprise
        ours = isinstance(caught.value, HpcgnnError)
        agreed = caught.value.agreed if ours else surprise[1] if surprise[0] is error else None
        assert comm.allgather(agreed.reports).index(True) == lowest
        assert agreed.alone == (lowest > 0)


def test_in_turn_runs_ranks_in_order(comm, shared_path):
    path = shared_path / "order"
    for _ in range(2):
        with comm.in_turn("writing"), path.open("a") as out:
            out.write(f"{comm.rank} ")
        assert path.read_text().endswith("".join(f"{p} " for p in range(comm.size)))
        comm.barrier()


def test_an_error_inside_in_turn_is_raised_on_all_ranks(comm):
    with pytest.raises(InputError, match="bad on 0"), comm.in_turn("writing"):
        if comm.rank == 0:
            raise InputError("bad on 0")
    assert comm.allreduce(1) == comm.size


def test_messages_of_arrays_and_tensors(comm):
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    arrived, tensor = np.zeros((2, 3), np.int32), torch.zeros(5, dtype=torch.bfloat16)
    requests = [comm.irecv(arrived, source, 3), comm.irecv(tensor, source, 4)]
    sends = [
        comm.isend(np.full((2, 3), comm.rank, np.int32), to, 3),
        comm.isend(torch.full((5,), comm.rank, dtype=torch.bfloat16), to, 4),
    ]
    assert {comm.wait_any(requests, "test"), comm.wait_any(requests, "test")} == {0, 1}
    assert comm.wait_any(requests, "test") == -1 and comm.test(requests) == -1
    comm.wait_all(sends, "test")
    assert (arrived == source).all() and (tensor == source).all()
    with pytest.raises(CommunicationError, match="contiguous"):
        comm.isend(np.zeros((4, 4))[:, 1], to, 3)


def test_signals_are_handled_while_waiting(comm):
    seen = []
    former = signal.signal(signal.SIGALRM, lambda *_: seen.append(time.monotonic()))
    request = comm.mpi.Irecv(np.empty(1), comm.rank, 9)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    comm.timeout = 0.5
    with pytest.raises(CommunicationError, match="'nothing'"):
        comm.wait_any([request], "nothing")
    ended = time.monotonic()
    request.Cancel()
    request.Wait()
    signal.signal(signal.SIGALRM, former)
    assert seen and ended - seen[0] > 0.3
    comm.timeout = 120
    comm.barrier()


def test_sub_makes_a_communicator_of_some_ranks(comm):
    ranks = list(range(comm.size))[::-2]
    part = comm.sub(ranks)
    assert (part is None) == (comm.rank not in ranks)
    if part is not None:
        assert part.allgather(comm.rank) == ranks
        part.close()


def test_a_closed_communicator_says_so(comm):
    made = Communicator(comm.mpi)
    made.close()
    sums, exchange = lambda: made.allreduce(1), lambda: Exchange(Ring(made), [], [], 1, torch.float)
    for use in (made.barrier, made.close, sums, exchange):
        with pytest.raises(CommunicationError, match="was closed"):
            use()


def test_timeout_is_read_from_the_environment(comm, monkeypatch):
    monkeypatch.setenv("HPCGNN_TIMEOUT", "12.5")
    made = Communicator()
    assert made.timeout == 12.5
    made.close()
    for wrong in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("HPCGNN_TIMEOUT", wrong)
        with pytest.raises(InputError, match=f"HPCGNN_TIMEOUT.*{wrong}"):
            Communicator()


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "3", True])
def test_timeout_given_by_a_program(comm, wrong):
    for give in (lambda: Communicator(timeout=wrong), lambda: setattr(comm, "timeout", wrong)):
        with pytest.raises(InputError, match="timeout must be a number of seconds above 0"):
            give()


def test_other_objects_than_communicators_are_refused():
    for wrong in (3, "world", MPI.COMM_NULL):
        for make in (Communicator, Communicator.of):
            with pytest.raises(InputError, match=r"comm (must be|is MPI.COMM_NULL)"):
                make(wrong)


def test_strict_mode_accepts_equal_operations(comm, monkeypatch):
    monkeypatch.setenv("HPCGNN_STRICT", "1")
    made = Communicator(timeout=60)
    assert made.allreduce(np.ones(3), where="a").tolist() == [made.size] * 3
    assert made.broadcast(made.rank, made.size - 1) == made.size - 1
    got = made.alltoallv([np.zeros((made.rank, 2))] * made.size)
    assert [len(rows) for rows in got] == list(range(made.size))
    made.close()


def test_one_communicator_is_kept_per_mpi_communicator(comm):
    kept = Communicator.of(comm.mpi)
    assert Communicator.of(comm.mpi) is kept is not Communicator.of()
    kept.close()
    again = Communicator.of(comm.mpi)
    assert again is not kept and again.allreduce(1) == comm.size
    again.close()


def test_what_is_kept_is_freed_with_the_mpi_communicator_once_unused(comm):
    parent, other = comm.mpi.Dup(), comm.mpi.Dup()
    kept = Communicator.of(parent)
    parent.Free()
    assert kept.allreduce(1) == comm.size
    mpi = kept.mpi
    del kept
    newest = Communicator.of(other)  # that one is watched until the process ends
    gc.collect()
    assert mpi == MPI.COMM_NULL
    newest.close()
    other.Free()
