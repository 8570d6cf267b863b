"""Blocks restricted to ranges of rows or columns, transposed, and cut where rows are long."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import backend
from hpcgnn.kernels.block import Block


def columns_between(block: Block, low: int, high: int) -> Block:
    """The same block restricted to columns `low .. high - 1`, sharing all edge arrays.

    Only the edge ranges of the rows are new; rows without an edge left stay, with none. On a GPU
    the result is kept as long as the block lives: to make it anew, the host waits for the GPU.
    """
    if low == 0 and high == block.num_columns:
        return block

    def cut() -> Block:
        first = block.column_offset + low
        begin, end = backend(block.device).between(block, first, first + high - low)
        return replace(block, num_columns=high - low, begin=begin, end=end, column_offset=first)

    return kept(block, f"columns {low} {high}", cut) if block.device.type == "cuda" else cut()


def rows_between(block: Block, low: int, high: int) -> Block:
    """Rows `low .. high - 1` of a block without a row list, renumbered from 0; kept on a GPU."""
    if low == 0 and high == block.num_rows:
        return block

    def cut() -> Block:
        return replace(block, begin=block.begin[low:high], end=block.end[low:high])

    return kept(block, f"rows {low} {high}", cut) if block.device.type == "cuda" else cut()


def transpose(block: Block, num_rows: int) -> Block:
    """The block compressed by column: its rows are the block's columns, and the other way round.

    Edges keep their order within a column and take weight, relation and features along.

    Args:
        num_rows: local rows of `block`, the number of columns of the result.
    """
    checks.block_on(block, block.device)
    if checks.num_local_rows(block) > num_rows:
        raise InputError("kernels: transpose needs num_rows above every row", value=num_rows)
    pointer, local_rows, order = backend(block.device).transpose(block)

    def carried(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[order]

    return replace(
        block,
        num_columns=num_rows,
        rows=None,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=local_rows,
        column_offset=0,
        weight=carried(block.weight),
        relation=carried(block.relation),
        features=carried(block.features),
    )


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
