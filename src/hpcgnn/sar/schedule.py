"""Which rows travel in which message of a ring exchange."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcgnn.comm.ring import ring_order
from hpcgnn.graph import Block, EdgeBlocks, PartitionedGraph


@dataclass(frozen=True)
class Schedule:
    """Messages of one rank, in ring order, none longer than the agreed number of rows.

    `arrivals[i]` is the block that the i-th received message completes; `departures[i]` names the
    peer and the local rows (int32) that the i-th sent message holds.
    """

    arrivals: list[Block]
    departures: list[tuple[int, Tensor]]


def pieces(length: int, most: int) -> list[tuple[int, int]]:
    """`range(length)` in consecutive pieces of at most `most`; none where length is 0."""
    return [(low, min(low + most, length)) for low in range(0, length, most)]


def schedule(graph: PartitionedGraph, edges: EdgeBlocks, max_rows: int) -> Schedule:
    """The exchange in which each rank receives the halo rows of `edges`; kept for the next call."""
    longest = max(
        [block.num_columns for block in edges.blocks if block.peer != edges.rank]
        + [rows.shape[0] for rows in edges.send_rows],
        default=0,
    )
    key = ("schedule", edges is graph.in_edges, max_rows if max_rows < longest else None)
    found = graph.cache.get(key)
    if not isinstance(found, Schedule):
        found = graph.cache[key] = _build(edges, max_rows)
    return found


def _build(edges: EdgeBlocks, max_rows: int) -> Schedule:
    size = edges.num_parts
    arrivals = [
        edges.blocks[peer].columns_between(low, high)
        for peer in ring_order(edges.rank, size, -1)
        for low, high in pieces(edges.blocks[peer].num_columns, max_rows)
    ]
    departures = [
        (peer, edges.send_rows[peer][low:high])
        for peer in ring_order(edges.rank, size, +1)
        for low, high in pieces(edges.send_rows[peer].shape[0], max_rows)
    ]
    return Schedule(arrivals, departures)


def work(block: Block, num_parts: int, most_rows: int = 16384) -> list[tuple[int, int]]:
    """Row ranges of `block` between which messages should be moved on; one range on one rank."""
    return pieces(block.num_rows, most_rows if num_parts > 1 else max(block.num_rows, 1))
