"""Rows with very many edges, cut into chunks so that no warp of a GPU works on one row for long.

Each chunk's result is a row of its own, and the chunks of a row are then added up in order: the
same bits in every run.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from hpcgnn.graph import Block

LONGEST = 512  # edges of one row that one warp works on

T = TypeVar("T")
_KEPT: dict[int, dict[str, Any]] = {}


def kept(block: Block, name: str, build: Callable[[], T]) -> T:
    """`build()`, kept under `name` as long as the block lives."""
    if id(block) not in _KEPT:
        _KEPT[id(block)] = {}
        weakref.finalize(block, _KEPT.pop, id(block), None)
    values = _KEPT[id(block)]
    if name not in values:
        values[name] = build()
    return values[name]


@dataclass(frozen=True)
class Hubs:
    """Some of the long rows of a block.

    `chunks`: rows `first .. last - 1` are the pieces of these rows, each with its local row;
    `join`: rows `low .. high - 1` are these rows, their columns the pieces, counted from `first`.
    """

    chunks: Block
    first: int
    last: int
    join: Block
    low: int
    high: int


@dataclass(frozen=True)
class Split:
    """What is known of a block's rows on the host; found once, which waits for the GPU.

    Attributes:
        num_edges: of all rows.
        positions: rows of the block with more than LONGEST edges, ascending.
    """

    num_edges: int
    num_rows: int
    positions: list[int]
    chunk_begin: list[int]
    chunks: Block | None
    join: Block | None

    @property
    def mean_degree(self) -> float:
        return self.num_edges / max(self.num_rows, 1)

    def hubs(self, rows: tuple[int, int]) -> Hubs | None:
        """The long rows among rows `rows[0] .. rows[1] - 1` of the block; None without any."""
        low, high = (bisect_left(self.positions, bound) for bound in rows)
        if low == high or self.chunks is None or self.join is None:
            return None
        first, last = self.chunk_begin[low], self.chunk_begin[high]
        join = self.join if first == 0 else replace(self.join, column_offset=first)
        return Hubs(self.chunks, first, last, join, low, high)


def split_of(block: Block) -> Split:
    """The split of a block's rows, kept as long as the block lives."""
    return kept(block, "split", lambda: _split(block))


def _split(block: Block) -> Split:
    counts = block.end - block.begin
    long = torch.nonzero(counts > LONGEST).flatten()
    num_edges = int(counts.sum())
    if len(long) == 0:
        return Split(num_edges, block.num_rows, [], [0], None, None)
    pieces = (counts[long] + LONGEST - 1) // LONGEST
    ends = pieces.cumsum(0)
    owner = torch.repeat_interleave(torch.arange(len(long), device=long.device), pieces)
    number = torch.arange(len(owner), device=long.device) - (ends - pieces)[owner]
    begin = block.begin[long][owner] + number * LONGEST
    local = long.to(torch.int32) if block.rows is None else block.rows[long]
    chunks = replace(
        block,
        rows=local[owner],
        begin=begin,
        end=torch.minimum(begin + LONGEST, block.end[long][owner]),
    )
    join = Block(
        peer=block.peer,
        num_columns=len(owner),
        rows=local,
        begin=ends - pieces,
        end=ends,
        columns=torch.arange(len(owner), dtype=torch.int32, device=long.device),
    )
    return Split(num_edges, block.num_rows, long.tolist(), [0, *ends.tolist()], chunks, join)
