"""Which rows travel in which message of a ring exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpcgnn import kernels
from hpcgnn.comm.ring import Incoming, ring_order
from hpcgnn.graph import Block, EdgeBlocks


class Cuts(Sequence[Block]):
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

    arrivals: Cuts
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
    return Schedule(Cuts(edges.blocks, ring_order(edges.rank, size, -1), max_rows), departures)


def work(block: Block, num_parts: int, most_rows: int = 16384) -> list[tuple[int, int]]:
    """Row ranges of `block` between which messages should be moved on.

    One range on one rank, and on a GPU, which works beside the host.
    """
    alone = num_parts == 1 or block.device.type == "cuda"
    return pieces(block.num_rows, max(block.num_rows, 1) if alone else most_rows)
