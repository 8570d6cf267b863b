"""Streaming rows of boundary nodes to the ranks that read them, and per-row answers back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.comm.ring import LARGEST_MESSAGE, Exchange, Incoming, Outgoing
from hpcgnn.graph import Block, EdgeBlocks, PartitionedGraph
from hpcgnn.sar.schedule import schedule

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

    def pack(rows: Tensor, out_HF: Tensor) -> None:
        kernels.pack_rows(x_NF, rows, out_HF)

    return pack


def give_back(
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
        accept(plan.departures[arrival.index][1], arrival.rows_HF)
