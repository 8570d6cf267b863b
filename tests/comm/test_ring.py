"""The ring exchange: which rows arrive, in which order, and in how much memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tests.comm.transport.test_transport import TRANSPORTS, Sluggish

from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError

pytestmark = pytest.mark.mpi
TAGS = {"data": 11, "reply": 12}


class Watched:
    """A communicator that counts which of its requests are still in flight."""

    def __init__(self, comm) -> None:
        self._comm = comm
        self.open: dict[str, list] = {}
        self.most: Counter[str] = Counter()
        self.empty_messages = 0

    def __getattr__(self, name: str):
        return getattr(self._comm, name)

    def issend(self, buffer, peer, tag):
        return self._note(f"send {tag}", buffer, self._comm.issend(buffer, peer, tag))

    def irecv(self, buffer, peer, tag):
        return self._note(f"receive {tag}", buffer, self._comm.irecv(buffer, peer, tag))

    def _note(self, kind: str, buffer, request):
        self.empty_messages += len(buffer) == 0 and int(kind.split()[1]) in TAGS.values()
        # The ring clears finished requests, so this inspects requests without progressing any.
        self.open[kind] = [r for r in self.open.get(kind, []) if r != type(r)()] + [request]
        self.most[kind] = max(self.most[kind], len(self.open[kind]))
        return request


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_in_each_step_a_rank_sends_to_one_and_receives_from_one(size):
    """At step k rank r sends to r + k and receives from r - k: no rank waits for a busy one."""
    for step in range(1, size):
        to = {rank: ring_order(rank, size, +1)[step - 1] for rank in range(size)}
        source = {rank: ring_order(rank, size, -1)[step - 1] for rank in range(size)}
        assert to == {rank: (rank + step) % size for rank in range(size)}
        assert source == {peer: rank for rank, peer in to.items()}
    assert all(
        len(ring_order(rank, size, way)) == size - 1 for rank in range(size) for way in (1, -1)
    )


def matrix(size: int, most: int, seed: int) -> np.ndarray:
    """Return the rows from each rank to each other; one rank in three sends or receives nothing."""
    rows = np.random.default_rng(seed).integers(0, most + 1, (size, size))
    rows[1::3] = 0
    rows[:, 2::3] = 0
    return rows


def pieces(rows: int, most: int) -> list[tuple[int, int]]:
    return [(low, min(low + most, rows)) for low in range(0, rows, most)]


def value(source: int, target: int, row: int) -> int:
    return source * 10_007 + target * 101 + row


def swap(comm, ring, rows, width, reply_width=0, at_once=False, dtype=torch.float32):
    """Exchange the rows of `matrix` in pieces and check the rows and replies, in order."""
    rank, size = comm.rank, comm.size
    most = 1 << 20 if at_once else ring.rows_per_message(width, dtype, reply_width)
    going = [
        (peer, *piece)
        for peer in ring_order(rank, size, +1)
        for piece in pieces(int(rows[rank, peer]), most)
    ]
    coming = [
        (peer, *piece)
        for peer in ring_order(rank, size, -1)
        for piece in pieces(int(rows[peer, rank]), most)
    ]
    answers: list[int] = []

    def outgoing(peer: int, low: int, high: int) -> Outgoing:
        def pack(out: torch.Tensor) -> None:
            assert out.shape == (high - low, width)
            out[:] = torch.arange(low, high)[:, None] + value(rank, peer, 0)

        return Outgoing(peer, high - low, pack)

    def on_reply(index: int, reply: torch.Tensor) -> None:
        peer, low, high = going[index]
        expected = -(torch.arange(low, high) + value(rank, peer, 0))
        assert torch.equal(reply, expected[:, None].expand(-1, reply_width).to(dtype))
        answers.append(index)

    exchange = Exchange(
        ring,
        [outgoing(*message) for message in going],
        [Incoming(peer, high - low) for peer, low, high in coming],
        width,
        dtype,
        reply_width=reply_width,
        on_reply=on_reply,
        at_once=at_once,
    )
    seen = []
    for arrival in exchange:
        peer, low, high = coming[arrival.index]
        expected = (torch.arange(low, high) + value(peer, rank, 0)).to(dtype)
        assert torch.equal(arrival.rows_MF, expected[:, None].expand(-1, width))
        seen.append(arrival.index)
        if reply_width:
            arrival.reply(-arrival.rows_MF[:, :1].expand(-1, reply_width))
    assert seen == list(range(len(coming)))
    assert answers == (list(range(len(going))) if reply_width else [])
    return len(going)


BUFFERS = [(4096, 3), (4096, 900), (1 << 16, 900)]
BOUNDS = [("host", prefetch, *buffer) for prefetch in (1, 2, 5) for buffer in BUFFERS]
# Other transports post short messages far ahead: `prefetch` decides how long a message may be.
BOUNDS += [
    (kind, prefetch, *buffer)
    for kind in ("ipc", "ipc and staged")
    for prefetch, buffer in zip((1, 5, 2), BUFFERS, strict=True)
]


@pytest.mark.parametrize(("kind", "prefetch", "halo_buffer", "most"), BOUNDS)
def test_an_exchange_stays_within_its_buffer(comm, kind, prefetch, halo_buffer, most):
    watched, ahead = Watched(comm), prefetch
    ring = Ring(watched, halo_buffer=halo_buffer, prefetch=prefetch)
    if kind != "host":
        ring.transport, ahead = TRANSPORTS[kind](Sluggish((1, 3)), comm), 16
    sent = 0
    for seed, (width, reply_width) in enumerate([(1, 0), (16, 0), (7, 2), (3, 9)]):
        # About as many in all on any number of ranks.
        rows = matrix(comm.size, min(most, 1800 // comm.size), seed)
        swap(comm, ring, rows, width, reply_width)
        away = rows.sum(1)[comm.rank] - rows[comm.rank, comm.rank]
        back = rows.sum(0)[comm.rank] - rows[comm.rank, comm.rank]
        sent += 4 * int(away * width + back * reply_width)
    assert ring.peak_bytes <= halo_buffer
    assert ring.bytes_sent == sent
    assert all(depth <= ahead for depth in watched.most.values()), watched.most
    assert watched.empty_messages == 0
    if comm.size in (2, 4) and most > 3 and comm.rank == 0 and kind == "host":
        assert watched.most["send 11"] == prefetch or halo_buffer > 4096


def test_all_messages_can_be_posted_at_once(comm):
    """One message per pair, all of them posted before any is waited for."""
    watched = Watched(comm)
    ring = Ring(watched, halo_buffer=4096, prefetch=1)
    rows = matrix(comm.size, 2000, 3)
    peers = (rows[comm.rank] > 0).sum() - (rows[comm.rank, comm.rank] > 0)
    assert swap(comm, ring, rows, 8, at_once=True) == peers
    assert watched.most["receive 11"] == (rows[:, comm.rank] > 0).sum() - (
        rows[comm.rank, comm.rank] > 0
    )


def test_buffers_hold_double_precision_and_are_released(comm):
    ring = Ring(comm, halo_buffer=8192)
    swap(comm, ring, matrix(comm.size, 400, 5), 3, 2, dtype=torch.float64)
    assert ring.peak_bytes <= 8192
    ring.release()
    assert ring.held_bytes() == 0


def test_slots_are_reused(comm):
    """A second exchange of the same widths allocates nothing."""
    ring = Ring(comm, halo_buffer=1 << 16)
    rows = matrix(comm.size, 200, 1)
    swap(comm, ring, rows, 4, 1)
    held = {name: [slot.near.data_ptr() for slot in s] for name, s in ring._slots.held.items()}
    swap(comm, ring, rows, 4, 1)
    assert held == {
        name: [slot.near.data_ptr() for slot in s] for name, s in ring._slots.held.items()
    }


@pytest.mark.parametrize("width", [1, 7, 129, 520])
def test_messages_fill_the_buffer(comm, width):
    """At least seven eighths of it, or of 16 MiB a message: 64,527 rows are no 32,768."""
    row_bytes = 4 * (width + 3)
    for size, most in ((33_554_040, 33_554_040), (1 << 30, 4 << 24)):
        ring = Ring(comm, halo_buffer=size, prefetch=2)
        rows = ring.rows_per_message(width, torch.float32, 3)
        assert 7 / 8 * most < 4 * rows * row_bytes <= most


def test_invalid_settings_are_refused(comm):
    with pytest.raises(InputError, match="--prefetch must be an integer of at least 1"):
        Ring(comm, prefetch=0)
    with pytest.raises(
        InputError, match="--halo-buffer must be an integer number of bytes, at least 4 KiB"
    ):
        Ring(comm, halo_buffer=4095)
    ring = Ring(comm, halo_buffer=4096, prefetch=2)
    assert ring.rows_per_message(256, torch.float32) == 1
    if comm.size == 1:  # sends nothing
        assert ring.rows_per_message(257, torch.float32) == 1
        return
    with pytest.raises(InputError, match="too small for one row of 257 numbers: give at least"):
        ring.rows_per_message(257, torch.float32)
