"""`bench ring`: the speed of the ring beside MPI's own messages, and while computing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from hpcgnn.bench.table import in_columns, seconds, size
from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.exchange import Exchange
from hpcgnn.comm.ring import Ring
from hpcgnn.errors import InputError

_WIDTH = 128  # of a row, float32
_MESSAGES = 8  # to each other rank
_PIECE = 256  # rows and columns of a matrix product, the work beside the messages
_TAG = 77


@dataclass(frozen=True)
class Lane:
    """Results for one message size; rates in bytes per second, medians of the slowest rank.

    Attributes:
        ping_pong: one way, by MPI's blocking calls between ranks 0 and 1.
        both_ways: into each rank, by MPI's Sendrecv around the ring.
        ring: into each rank, by the exchange that layers use, packing included.
        work_seconds, exchange_seconds: of the products and of the exchange, one after the other.
        together_seconds: of both at once.
        overlap: share of the shorter of the two that is hidden by the other.
    """

    message_bytes: int
    ping_pong: float
    both_ways: float
    ring: float
    work_seconds: float
    exchange_seconds: float
    together_seconds: float

    @property
    def overlap(self) -> float:
        saved = self.work_seconds + self.exchange_seconds - self.together_seconds
        return saved / min(self.work_seconds, self.exchange_seconds)


@dataclass(frozen=True)
class RingReport:
    """The result of `bench ring`."""

    ranks: int
    transport: str
    lanes: list[Lane]

    def lines(self) -> list[str]:
        head = ("a message", "ping-pong", "Sendrecv", "ring", "exchange", "work", "both", "hidden")
        rows = [
            [
                size(lane.message_bytes),
                *(f"{size(rate)}/s" for rate in (lane.ping_pong, lane.both_ways, lane.ring)),
                seconds(lane.exchange_seconds),
                seconds(lane.work_seconds),
                seconds(lane.together_seconds),
                f"{100 * lane.overlap:.0f} %",
            ]
            for lane in self.lanes
        ]
        return [
            f"{self.ranks} ranks, transport {self.transport}; rates of bytes into a rank, "
            f"{_MESSAGES} messages to each other rank",
            *in_columns(head, rows),
            "hidden: the share of the shorter of exchange and work that took no extra time when "
            "both ran together",
        ]

    def as_json(self) -> dict[str, Any]:
        lanes = [{**asdict(lane), "overlap": lane.overlap} for lane in self.lanes]
        return {"what": "ring", "ranks": self.ranks, "transport": self.transport, "lanes": lanes}


def measure_ring(comm: Communicator, sizes: list[int], repeat: int) -> RingReport:
    """Measure all message sizes; the result is the same on all ranks. Collective.

    Args:
        sizes: bytes of a message, rounded to whole rows.

    Raises:
        InputError: there is only one rank.
    """
    if comm.size < 2:
        raise InputError("bench ring needs 2 ranks or more")
    ring = Ring(comm)
    lanes = [_lane(comm, ring, num_bytes, repeat) for num_bytes in sizes]
    return RingReport(comm.size, ring.transport.name, lanes)


def _lane(comm: Communicator, ring: Ring, num_bytes: int, repeat: int) -> Lane:
    rows = max(1, num_bytes // (_WIDTH * 4))
    num_bytes = rows * _WIDTH * 4
    ping_pong = _slowest(comm, lambda: _ping_pong(comm, num_bytes), repeat) / 2
    both_ways = _slowest(comm, lambda: _around(comm, num_bytes), repeat)
    source_MF = torch.randn(rows, _WIDTH)
    exchange = _slowest(comm, lambda: _exchange(comm, ring, source_MF, 0), repeat)
    products = _products_of(comm, exchange)
    work = _slowest(comm, lambda: _work(products, None), repeat)
    together = _slowest(comm, lambda: _exchange(comm, ring, source_MF, products), repeat)
    return Lane(
        message_bytes=num_bytes,
        ping_pong=num_bytes / ping_pong,
        both_ways=num_bytes / both_ways,
        ring=num_bytes * _MESSAGES * (comm.size - 1) / exchange,
        work_seconds=work,
        exchange_seconds=exchange,
        together_seconds=together,
    )


def _slowest(comm: Communicator, run: Callable[[], None], repeat: int) -> float:
    """Return the median over repetitions of the seconds of the slowest rank."""
    taken = []
    for _ in range(repeat + 1):
        comm.barrier()
        start = time.perf_counter()
        run()
        mine = time.perf_counter() - start
        taken.append(float(comm.allreduce(mine, "max", where="seconds")))
    return median(taken[1:])


def _ping_pong(comm: Communicator, num_bytes: int) -> None:
    """Send a message from rank 0 to rank 1 and back."""
    if comm.rank > 1:
        return
    buffer = torch.ones(num_bytes, dtype=torch.uint8).numpy()
    other = 1 - comm.rank
    for turn in (0, 1):
        if comm.rank == turn:
            comm.mpi.Send(buffer, other, _TAG)
        else:
            comm.mpi.Recv(buffer, other, _TAG)


def _around(comm: Communicator, num_bytes: int) -> None:
    """Send to the next rank and receive from the previous one, at once."""
    out, into = (torch.ones(num_bytes, dtype=torch.uint8).numpy() for _ in range(2))
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    comm.mpi.Sendrecv(out, after, _TAG, into, before, _TAG)


def _exchange(comm: Communicator, ring: Ring, source_MF: torch.Tensor, products: int) -> None:
    """Exchange rows with all other ranks, computing `products` small products meanwhile."""
    rows = len(source_MF)

    def pack(slot_MF: torch.Tensor) -> None:
        slot_MF.copy_(source_MF)

    outgoing = [
        Outgoing(peer, rows, pack)
        for peer in ring_order(comm.rank, comm.size, 1)
        for _ in range(_MESSAGES)
    ]
    incoming = [
        Incoming(peer, rows)
        for peer in ring_order(comm.rank, comm.size, -1)
        for _ in range(_MESSAGES)
    ]
    exchange = Exchange(ring, outgoing, incoming, _WIDTH, torch.float32, where="bench ring")
    share = -(-products // len(incoming))
    for _ in exchange:
        _work(min(share, products), exchange)
        products -= min(share, products)


def _work(products: int, exchange: Exchange | None) -> None:
    a = torch.ones(_PIECE, _PIECE)
    out = torch.empty_like(a)
    for _ in range(products):
        torch.mm(a, a, out=out)
        if exchange is not None:
            exchange.progress()


def _products_of(comm: Communicator, wanted: float) -> int:
    """Return the number of products that take about `wanted` seconds, the same on all ranks."""
    once = _slowest(comm, lambda: _work(16, None), 3) / 16
    return max(1, round(wanted / once))
