"""The stream of boundary rows over the ring, and the loop over it.

A layer's aggregation processes the edges between local nodes first, then every message of remote
rows as it arrives, and lets pending messages advance between pieces of work:

    for block, rows, progress in stream(graph, edges, payload, where="sum forward"):
        for part in work(block, edges.num_parts):
            kernel(block, *rows, rows=part)
            progress()

The exchange begins before the first block is yielded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.comm.arrivals import Arrival, PiecesAhead
from hpcgnn.comm.channel import Incoming, Outgoing, ring_order
from hpcgnn.comm.exchange import Exchange
from hpcgnn.graph.partitioned import EdgeBlocks, PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.sar import interior
from hpcgnn.sar.hubs import CutBlocks, RowSums
from hpcgnn.sar.products import RowLayout, gathered, readable
from hpcgnn.sar.turns import Progress, made_before

Rows = tuple[Tensor, ...]
Accept = Callable[[Tensor, Tensor], None]  # (local rows int32, the rows returned for them)


class Chunks(Sequence[Block]):
    """Blocks cut into ranges of their columns; each cut is made on access.

    Args:
        given: holds the blocks.
        most: columns of a cut, at most.
        keep: cache the cuts with the blocks, for what is derived from them.
    """

    def __init__(
        self, given: CutBlocks, peers: list[int], most: int, *, keep: bool = False
    ) -> None:
        self.given, self.most, self._keep = given, most, keep
        self.places = [
            (peer, low, high)
            for peer in peers
            for low, high in chunks(given.blocks[peer].num_columns, most)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        peer, low, _ = self.places[index]
        block, number = self.given.blocks[peer], low // self.most
        return kernels.column_range(block, number, self.most, keep=self._keep)

    def incoming(self) -> list[Incoming]:
        return [Incoming(peer, high - low) for peer, low, high in self.places]


@dataclass(frozen=True)
class Schedule:
    """The messages of one rank, in ring order, each of at most the agreed number of rows.

    `arrivals[i]` is the block whose rows the i-th received message holds; `departures[i]` is the
    peer and the local rows (int32) of the i-th sent message.
    """

    arrivals: Chunks
    departures: list[tuple[int, Tensor]]


def chunks(length: int, most: int) -> list[tuple[int, int]]:
    """Return `range(length)` as consecutive chunks of at most `most`; none if length is 0."""
    return [(low, min(low + most, length)) for low in range(0, length, most)]


def schedule(edges: EdgeBlocks, max_rows: int, *, keep: bool) -> Schedule:
    """Return the schedule by which each rank receives the halo rows of `edges`."""
    size = edges.num_parts
    departures = [
        (peer, edges.send_rows[peer][low:high])
        for peer in ring_order(edges.rank, size, +1)
        for low, high in chunks(edges.send_rows[peer].shape[0], max_rows)
    ]
    peers = ring_order(edges.rank, size, -1)
    return Schedule(Chunks(edges, peers, max_rows, keep=keep), departures)


def work(block: Block, num_parts: int, most_rows: int = 16384) -> list[tuple[int, int]]:
    """Return row ranges of `block`; pending messages should be advanced between them.

    A single range on one rank, and on a GPU, which works concurrently with the host.
    """
    alone = num_parts == 1 or block.device.type == "cuda"
    return chunks(block.num_rows, max(block.num_rows, 1) if alone else most_rows)


@dataclass(frozen=True)
class Payload:
    """The values of each local node that are sent in a message row, and their layout.

    Args:
        features: each `[N, ...]`; sent in `dtype`.
        scalars: each `[N, ...]`; sent in the accumulation dtype, which they have.
        gathered: kernels read the features as `products.gathered` returns them.
    """

    features: tuple[Tensor, ...]
    dtype: torch.dtype
    scalars: tuple[Tensor, ...] = ()
    gathered: bool = False

    @property
    def layout(self) -> RowLayout:
        on_gpu = self.features[0].device.type == "cuda"
        return RowLayout(sum(self._widths), sum(self._scalar_widths), self.dtype, on_gpu)

    @property
    def _widths(self) -> list[int]:
        return [part.shape[1] for part in self.features]

    @property
    def _scalar_widths(self) -> list[int]:
        return [part.shape[1] for part in self.scalars]

    @property
    def row_bytes(self) -> int:
        """Bytes of a local node's row."""
        return sum(part.shape[1] * part.element_size() for part in self.local)

    @property
    def local(self) -> Rows:
        """The rows of local nodes."""
        return (*self.features, *self.scalars)

    def pack(self, rows: Tensor, out_MW: Tensor) -> None:
        """Write the message rows of these local rows (int32)."""
        kernels.pack_parts(list(zip(self.local, self._parts(out_MW), strict=True)), rows)

    def unpack(self, rows_MW: Tensor) -> Rows:
        """Return the content of a message as kernels read it: features, then scalars."""
        count = len(self.features)
        parts = self._parts(rows_MW)
        if self.gathered:
            return (*(gathered(part, None) for part in parts[:count]), *parts[count:])
        return (*map(readable, parts[:count]), *parts[count:])

    def _parts(self, rows_MW: Tensor) -> list[Tensor]:
        layout = self.layout
        features = layout.features(rows_MW).split(self._widths, dim=1)
        if not self.scalars:
            return list(features)
        return [*features, *layout.scalars(rows_MW).split(self._scalar_widths, dim=1)]


def drive(
    exchange: Exchange,
    local: Iterable[Block],
    payload: Payload,
    arrivals: Chunks,
    sums: RowSums | None = None,
    *,
    by_row: bool = False,
    idle: Callable[[], bool] | None = None,
    last: Callable[[], None] | None = None,
) -> Iterator[tuple[Block, Rows, Arrival | None]]:
    """Yield local blocks, then each arrival's block, with the rows that they read.

    Args:
        sums: what the blocks are added to, if hubs are to stay accurate over very many messages.
        by_row: only the order of edges within each row matters, so that a GPU may process messages
            before the local edges of rows that no message adds to.
        idle: called while the next message has not come: does a piece of other work, and returns
            whether there was any.
        last: called after all blocks, while messages of this rank may still be in flight.
    """
    if sums is not None:
        sums.begin_messages(arrivals.given, arrivals.most)
    slices: list[Block] = []
    if by_row and exchange.awaits:
        local, slices = interior.in_slices(arrivals.given, local, payload.row_bytes)
    for block in local:
        yield block, payload.local, None
    exchange.release()

    def arrived(arrival: Arrival) -> Iterator[tuple[Block, Rows, Arrival]]:
        yield arrivals[arrival.index], payload.unpack(arrival.rows_MF), arrival
        if sums is not None:
            sums.added()

    between = PiecesAhead(exchange, exchange.ring.transport.mark)
    for block in slices:
        yield block, payload.local, None
        for arrival in between.arrivals():
            yield from arrived(arrival)
    for arrival in exchange if idle is None else _beside(exchange, idle):
        yield from arrived(arrival)
    if sums is not None:
        sums.end()
    if last is not None:
        last()
    exchange.finish()


def _beside(exchange: Exchange, idle: Callable[[], bool]) -> Iterator[Arrival]:
    """Yield all messages; `idle` works while none has come."""
    while exchange.awaits:
        if arrival := exchange.if_come():
            yield arrival
        elif not idle():
            exchange.wait()


def stream(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    payload: Payload,
    *,
    where: str,
    local: Iterable[Block] | None = None,
    kept: list[Tensor] | None = None,
    cut_for: int = 0,
    sums: RowSums | None = None,
    before: Callable[[int], None] | None = None,
    meanwhile: Callable[[Progress], None] | None = None,
    by_row: bool = False,
) -> Iterator[tuple[Block, Rows, Progress]]:
    """Yield blocks of `edges`, the rows they read, and a `Progress`; collective.

    Args:
        local: blocks that need no messages; by default the one between local nodes.
        kept: a list to which a copy of every message is appended.
        cut_for: cut messages as `stream_and_return` does for gradients of this width, so that its
            blocks are the same.
        sums: what each block is added to, see `hubs`.
        before: called with a row number before a message is packed from rows below it, so that it
            can compute those rows first.
        meanwhile: called with the `Progress` once messages are in flight, before the first block;
            it can compute rows that are not sent to any rank.
        by_row: as for `drive`.
    """
    exchange, arrivals = _start(graph, edges, payload, where, cut_for=cut_for, before=before)
    if meanwhile is not None:
        meanwhile(exchange.progress)
    local = [edges.blocks[edges.rank]] if local is None else local
    for block, rows, arrival in drive(exchange, local, payload, arrivals, sums, by_row=by_row):
        if arrival is not None and kept is not None:
            kept.append(arrival.rows_MF.clone())
        yield block, rows, exchange.progress


def first_sent(edges: EdgeBlocks) -> int:
    """Return the first local row that is sent to any rank."""
    return edges.derived(_FirstSent())


@dataclass(frozen=True)
class _FirstSent:
    """The first sent row, found once, since finding it on a GPU has to wait for it."""

    def build(self, edges: EdgeBlocks) -> int:
        sent = [int(rows.min()) for rows in edges.send_rows if len(rows)]
        return min(sent, default=edges.blocks[edges.rank].num_columns)


def untouched(edges: EdgeBlocks) -> int:
    """Return the row before which none is sent, nor is in any block of remote rows.

    On a GPU, which has more work queued than it waits for, and on one rank it is 0.
    """
    return edges.derived(_Untouched())


@dataclass(frozen=True)
class _Untouched:
    def build(self, edges: EdgeBlocks) -> int:
        if edges.num_parts == 1 or interior.on_gpu(edges):
            return 0
        remote = [block for block in edges.blocks if block.peer != edges.rank and block.num_rows]
        reached = [0 if block.rows is None else int(block.rows[0]) for block in remote]
        return min([first_sent(edges), *reached])


def stream_and_return(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    payload: Payload,
    grad_NG: Tensor,
    accept: Accept,
    *,
    where: str,
    local: Sequence[Block] | None = None,
    in_order: bool = False,
    sums: RowSums | None = None,
    meanwhile: Callable[[Progress], None] | None = None,
    by_row: bool = False,
) -> Iterator[tuple[Block, Rows, Tensor, Progress]]:
    """Yield as `stream`, with gradients of the rows, which are sent to their owners; collective.

    Gradients are added to the third value: `grad_NG` itself for local blocks, else zeros of that
    width, which are sent when the next block is requested.

    Args:
        accept: takes returned gradients, in the order in which the rows were sent.
        in_order: accept nothing before the local blocks are done.
        meanwhile, by_row: as for `stream`.
    """
    exchange, arrivals = _start(
        graph,
        edges,
        payload,
        where,
        return_width=grad_NG.shape[1],
        accept=accept,
        hold_replies=in_order,
    )
    if meanwhile is not None:
        meanwhile(exchange.progress)
    local = [edges.blocks[edges.rank]] if local is None else local
    for block, rows, arrival in drive(exchange, local, payload, arrivals, sums, by_row=by_row):
        if arrival is None:
            yield block, rows, grad_NG, exchange.progress
            continue
        grad_MG = grad_NG.new_zeros(block.num_columns, grad_NG.shape[1])
        yield block, rows, grad_MG, exchange.progress
        arrival.reply(grad_MG)


def _start(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    payload: Payload,
    where: str,
    *,
    return_width: int = 0,
    cut_for: int = 0,
    accept: Accept | None = None,
    hold_replies: bool = False,
    before: Callable[[int], None] | None = None,
) -> tuple[Exchange, Chunks]:
    """Begin to send every halo row of `edges`; return the exchange and the blocks of arrivals."""
    width, at_once = payload.layout.columns, graph.execution.at_once
    most = graph.ring.rows_per_message(
        width, payload.dtype, max(return_width, cut_for), at_once=at_once
    )
    plan = schedule(edges, most, keep=graph.mode != "sar")
    graph.execution.newest = None

    def on_reply(index: int, reply_MG: Tensor) -> None:
        if accept is not None:
            accept(plan.departures[index][1], reply_MG)

    def pack(rows: Tensor, out_MW: Tensor) -> None:
        if before is not None and len(rows):
            made_before(graph.ring, before, 1 + int(rows.max()))
        payload.pack(rows, out_MW)

    exchange = Exchange(
        graph.ring,
        [Outgoing(peer, len(rows), partial(pack, rows)) for peer, rows in plan.departures],
        plan.arrivals.incoming(),
        width,
        payload.dtype,
        where=where,
        reply_width=return_width,
        on_reply=on_reply,
        at_once=at_once,
        hold_replies=hold_replies,
    )
    return exchange, plan.arrivals


def return_gradients(
    graph: PartitionedGraph,
    edges: EdgeBlocks,
    width: int,
    dtype: torch.dtype,
    produce: Callable[[int, Block, Tensor], None],
    accept: Accept,
    *,
    where: str,
    first: Callable[[Progress], None],
    sums: RowSums | None = None,
) -> None:
    """Send one row per halo row back to its owner; collective.

    Args:
        produce: `produce(i, block, out)` adds the rows of the i-th arrival of `stream` to `out`,
            which is zero before.
        sums: the sums over local rows that `produce` adds to, see `hubs`.
        accept: takes the rows returned for local rows.
        first: local work, called with a `Progress` before anything is produced.
    """
    at_once = graph.execution.at_once
    most = graph.ring.rows_per_message(width, dtype, at_once=at_once)
    plan = schedule(edges, most, keep=True)

    def pack(index: int, out_MF: Tensor) -> None:
        block = plan.arrivals[index]
        produce(index, block, out_MF.zero_())
        if sums is not None:
            sums.added()

    if sums is not None:
        sums.begin_messages(edges, most)

    graph.execution.newest = None
    exchange = Exchange(
        graph.ring,
        [
            Outgoing(message.peer, message.num_rows, partial(pack, index))
            for index, message in enumerate(plan.arrivals.incoming())
        ],
        [Incoming(peer, rows.shape[0]) for peer, rows in plan.departures],
        width,
        dtype,
        where=where,
        at_once=at_once,
        hold_sends=True,
    )
    first(exchange.progress)
    exchange.release()
    for arrival in exchange:
        accept(plan.departures[arrival.index][1], arrival.rows_MF)
    if sums is not None:
        sums.end()
