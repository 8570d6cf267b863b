"""Streaming rows of boundary nodes over the ring, in messages of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.comm.ring import LARGEST_MESSAGE, Exchange, Incoming, Outgoing, ring_order
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block


class Chunks(Sequence[Block]):
    """Blocks cut into ranges of their columns; a cut is made when it is asked for."""

    def __init__(self, blocks: list[Block], peers: list[int], most: int) -> None:
        self._blocks = blocks
        self.places = [
            (peer, low, high)
            for peer in peers
            for low, high in pieces(blocks[peer].num_columns, most)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        peer, low, high = self.places[index]
        return kernels.columns_between(self._blocks[peer], low, high)

    def incoming(self) -> list[Incoming]:
        return [Incoming(peer, high - low) for peer, low, high in self.places]


@dataclass(frozen=True)
class Schedule:
    """Messages of one rank, in ring order, none longer than the agreed number of rows.

    `arrivals[i]` is the block that the i-th received message completes; `departures[i]` names the
    peer and the local rows (int32) that the i-th sent message holds.
    """

    arrivals: Chunks
    departures: list[tuple[int, Tensor]]


def pieces(length: int, most: int) -> list[tuple[int, int]]:
    """`range(length)` in consecutive pieces of at most `most`; none where length is 0."""
    return [(low, min(low + most, length)) for low in range(0, length, most)]


def schedule(edges: EdgeBlocks, max_rows: int) -> Schedule:
    """The exchange in which each rank receives the halo rows of `edges`."""
    size = edges.num_parts
    departures = [
        (peer, edges.send_rows[peer][low:high])
        for peer in ring_order(edges.rank, size, +1)
        for low, high in pieces(edges.send_rows[peer].shape[0], max_rows)
    ]
    return Schedule(Chunks(edges.blocks, ring_order(edges.rank, size, -1), max_rows), departures)


def work(block: Block, num_parts: int, most_rows: int = 16384) -> list[tuple[int, int]]:
    """Row ranges of `block` between which messages should be moved on.

    One range on one rank, and on a GPU, which works beside the host.
    """
    alone = num_parts == 1 or block.device.type == "cuda"
    return pieces(block.num_rows, max(block.num_rows, 1) if alone else most_rows)


Pack = Callable[[Tensor, Tensor], None]


def stream(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    width: int,
    dtype: torch.dtype,
    pack: Pack,
    *,
    where: str,
    reply_width: int = 0,
    on_reply: Callable[[Tensor, Tensor], None] | None = None,
    cut_for: int = 0,
    first: Callable[[], None] | None = None,
) -> tuple[Exchange, Sequence[Block]]:
    """Start sending every halo row of `edges`; collective.

    Args:
        pack: `pack(rows, out)` writes `[len(rows), width]` for local rows (int32).
        reply_width: numbers per row that come back from the reader; 0 for none.
        on_reply: `on_reply(rows, reply)` takes `[len(rows), reply_width]` for the rows sent.
        cut_for: cut messages as a stream with this `reply_width` does, so that its blocks are the
            same ones.
        first: work to do before anything is packed, see `Exchange`.

    Returns:
        The exchange to iterate, and the block that each arrival completes.
    """
    at_once, returned = graph.mode == "oneshot", max(reply_width, cut_for)
    if at_once:
        most = LARGEST_MESSAGE // max((width + returned) * dtype.itemsize, 1)
    else:
        most = graph.ring.rows_per_message(width, dtype, returned)
    plan = schedule(edges, most)
    graph.execution.newest = None
    exchange = Exchange(
        graph.ring,
        [_outgoing(peer, rows, pack) for peer, rows in plan.departures],
        plan.arrivals.incoming(),
        width,
        dtype,
        where=where,
        reply_width=reply_width,
        on_reply=None
        if on_reply is None
        else lambda index, reply: on_reply(plan.departures[index][1], reply),
        at_once=at_once,
        first=first,
    )
    return exchange, plan.arrivals


def _outgoing(peer: int, rows: Tensor, pack: Pack) -> Outgoing:
    return Outgoing(peer, rows.shape[0], lambda out: pack(rows, out))


def take_rows(x_NF: Tensor) -> Pack:
    """A `pack` that copies rows of `x_NF`."""

    def pack(rows: Tensor, out_MF: Tensor) -> None:
        kernels.pack_rows(x_NF, rows, out_MF)

    return pack


def return_gradients(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    width: int,
    dtype: torch.dtype,
    produce: Callable[[int, Block, Tensor], None],
    accept: Callable[[Tensor, Tensor], None],
    *,
    where: str,
    first: Callable[[], None] | None = None,
) -> None:
    """Send one row per halo row back to its owner; collective.

    Args:
        produce: `produce(i, block, out)` adds the rows of the i-th arrival of `stream` to `out`,
            which starts at 0.
        accept: `accept(rows, values)` takes what came for these local rows (int32).
        first: work to do before anything is packed, see `Exchange`.
    """
    at_once = graph.mode == "oneshot"
    if at_once:
        most = LARGEST_MESSAGE // max(width * dtype.itemsize, 1)
    else:
        most = graph.ring.rows_per_message(width, dtype)
    plan = schedule(edges, most)

    def outgoing(index: int, message: Incoming) -> Outgoing:
        return Outgoing(
            message.peer,
            message.num_rows,
            lambda out: produce(index, plan.arrivals[index], out.zero_()),
        )

    graph.execution.newest = None
    exchange = Exchange(
        graph.ring,
        [outgoing(index, message) for index, message in enumerate(plan.arrivals.incoming())],
        [Incoming(peer, rows.shape[0]) for peer, rows in plan.departures],
        width,
        dtype,
        where=where,
        at_once=at_once,
        first=first,
    )
    for arrival in exchange:
        accept(plan.departures[arrival.index][1], arrival.rows_MF)
