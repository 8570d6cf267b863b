"""Blocks restricted to ranges of rows or columns, transposed, or with their long rows split."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import Rows, backend
from hpcgnn.kernels.block import Block

LONGEST = 512  # most edges of one row that one warp processes


@dataclass(frozen=True)
class Columns:
    """The block restricted to columns `low .. high - 1`."""

    low: int
    high: int

    def build(self, given: Block, /) -> Block:
        return _narrowed(given, self.low, self.high, None)


def _narrowed(block: Block, low: int, high: int, picked: Tensor | None) -> Block:
    offset = block.column_offset
    rows, begin, end = backend(block.device).between(block, offset + low, offset + high, picked)
    return replace(
        block,
        num_columns=high - low,
        rows=rows,
        begin=begin,
        end=end,
        column_offset=offset + low,
    )


def columns_between(block: Block, low: int, high: int) -> Block:
    """Return the block restricted to columns `low .. high - 1` and to rows with edges there.

    All edge arrays are shared. On a GPU the result is kept as long as the block lives, because
    the host would wait for the GPU to make it again.
    """
    if low == 0 and high == block.num_columns:
        return block
    what = Columns(low, high)
    return block.derived(what) if block.device.type == "cuda" else what.build(block)


@dataclass(frozen=True)
class RowLists:
    """Ascending lists of rows, as steps from one to the next in the narrowest type that fits.

    Attributes:
        first: the first row of each list; 0 in an empty one.
        pointers: where the steps of each list begin, those of the first rows, 0, included.
    """

    first: list[int]
    pointers: list[int]
    steps: Tensor

    @staticmethod
    def of(rows: Tensor, pointers: Tensor) -> RowLists:
        starts = pointers[:-1].clamp(max=max(len(rows) - 1, 0))
        first = rows[starts] if len(rows) else torch.zeros_like(starts)
        steps = rows.diff(prepend=rows[:1])
        steps[starts[pointers[:-1] < pointers[1:]]] = 0
        most = int(steps.max()) if len(steps) else 0
        fits = [t for t in (torch.uint8, torch.int16) if most <= torch.iinfo(t).max]
        return RowLists(first.tolist(), pointers.tolist(), steps.to(next(iter(fits), steps.dtype)))

    def __getitem__(self, number: int) -> Tensor:
        """Return a list: int32."""
        low, high = self.pointers[number : number + 2]
        return self.steps[low:high].cumsum(0, dtype=torch.int32).add_(self.first[number])


@dataclass(frozen=True)
class RangeRows:
    """The rows of a block that have edges in each range of `most` columns, found in one pass."""

    most: int

    def build(self, given: Block, /) -> RowLists:
        return RowLists.of(*backend(given.device).range_rows(given, self.most))


@dataclass(frozen=True)
class ColumnRange:
    """The block restricted to at most `most` columns, from `number * most` on."""

    number: int
    most: int

    def build(self, given: Block, /) -> Block:
        own = given.derived(RangeRows(self.most))[self.number]
        low = self.number * self.most
        return _narrowed(given, low, min(low + self.most, given.num_columns), own)


def column_range(block: Block, number: int, most: int, *, keep: bool) -> Block:
    """Return `columns_between` for range `number` of a block cut into ranges of `most` columns.

    All ranges together take time linear in the block's edges. The rows of each range are kept with
    the block, mostly in a byte per row; the returned block is kept only on a GPU or if `keep`.
    """
    if most >= block.num_columns:
        return block
    what = ColumnRange(number, most)
    kept = keep or block.device.type == "cuda"
    return block.derived(what) if kept else what.build(block)


@dataclass(frozen=True)
class RowRange:
    """Rows `low .. high - 1` of a block without a row list, renumbered from 0."""

    low: int
    high: int

    def build(self, given: Block, /) -> Block:
        low, high = self.low, self.high
        return replace(given, begin=given.begin[low:high], end=given.end[low:high])


def rows_between(block: Block, low: int, high: int) -> Block:
    """Return rows `low .. high - 1` of a block without a row list, from 0; kept on a GPU."""
    if low == 0 and high == block.num_rows:
        return block
    what = RowRange(low, high)
    return block.derived(what) if block.device.type == "cuda" else what.build(block)


def picked(block: Block, rows: Tensor | slice) -> Block:
    """Return these rows of the block (int64, ascending); their sums are bitwise the same."""
    local = block.rows
    if local is None:
        local = torch.arange(block.num_rows, dtype=torch.int32, device=block.device)
    return replace(
        block,
        rows=local[rows],
        begin=block.begin[rows],
        end=block.end[rows],
        mean_degree=split_of(block).mean_degree,
    )


def transpose(block: Block, num_rows: int) -> Block:
    """Return the block compressed by column: rows of the result are columns of `block`.

    Edges keep their order within a column, and their weight, relation and features.

    Args:
        num_rows: number of local rows of `block`, which are the columns of the result.
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


@dataclass(frozen=True)
class Transposed:
    """The block compressed by column, without weights and relations.

    Attributes:
        num_rows: number of local rows of the block, which are the columns of the result.
    """

    num_rows: int
    with_features: bool

    def build(self, given: Block, /) -> Block:
        begin, local_rows, order = backend(given.device).transpose(given)
        features = given.features if self.with_features else None
        features = None if features is None else features[order]
        del order
        block = Block(given.peer, self.num_rows, None, begin[:-1], begin[1:], local_rows)
        if given.rows is None and all(
            torch.equal(getattr(given, name), getattr(block, name))
            for name in ("begin", "end", "columns")
        ):  # as between the nodes of a part of an undirected graph
            block = replace(block, begin=given.begin, end=given.end, columns=given.columns)
        return replace(block, features=features)


def transposed(block: Block, num_rows: int, *, with_features: bool) -> Block:
    """Return the block compressed by column, without weights and relations; kept with `block`."""
    return block.derived(Transposed(num_rows, with_features))


@dataclass(frozen=True)
class Hubs:
    """Some of the long rows of a block.

    Rows `first .. last - 1` of `chunks` are the pieces of these rows, each with its local row. Rows
    `low .. high - 1` of `join` are these rows; their columns are the pieces, numbered from `first`.
    """

    chunks: Block
    first: int
    last: int
    join: Block
    low: int
    high: int


@dataclass(frozen=True)
class Split:
    """Facts about a block's rows on the host; computed once, for which the host waits for the GPU.

    Attributes:
        num_edges: number of edges of all rows.
        mean_degree: mean edges per row, by which kernels choose how many lanes share a row.
        positions: rows of the block with more than LONGEST edges, ascending.
        chunk_begin: the first chunk of each of these rows, then the number of chunks.
        chunks, join: those of all these rows, as in `Hubs`; None without long rows.
    """

    num_edges: int
    mean_degree: float
    positions: list[int]
    chunk_begin: list[int]
    chunks: Block | None
    join: Block | None

    def hubs(self, rows: Rows) -> Hubs | None:
        """Return the long rows among rows `rows[0] .. rows[1] - 1` of the block, None if none."""
        low, high = (bisect_left(self.positions, bound) for bound in rows)
        if low == high or self.chunks is None or self.join is None:
            return None
        first, last = self.chunk_begin[low], self.chunk_begin[high]
        join = self.join if first == 0 else replace(self.join, column_offset=first)
        return Hubs(self.chunks, first, last, join, low, high)


def split_of(block: Block) -> Split:
    """Return the split of a block's rows, kept as long as the block lives."""
    return block.derived(SplitRows())


@dataclass(frozen=True)
class SplitRows:
    """The split of a block: rows of more than LONGEST edges in chunks of at most LONGEST."""

    def build(self, given: Block, /) -> Split:
        counts = given.end - given.begin
        num_edges = int(counts.sum())
        mean_degree = given.mean_degree
        if mean_degree is None:
            mean_degree = num_edges / max(given.num_rows, 1)
        long = torch.nonzero(counts > LONGEST).flatten()
        if len(long) == 0:
            return Split(num_edges, mean_degree, [], [0], None, None)
        local = long.to(torch.int32) if given.rows is None else given.rows[long]
        num_chunks = (counts[long] + LONGEST - 1) // LONGEST  # of each long row
        last = num_chunks.cumsum(0)
        first = last - num_chunks
        # For each chunk: the long row that it is a piece of, and where its edges begin.
        row = torch.repeat_interleave(torch.arange(len(long), device=long.device), num_chunks)
        number = torch.arange(len(row), device=long.device) - first[row]
        begin = given.begin[long][row] + number * LONGEST
        end = torch.minimum(begin + LONGEST, given.end[long][row])
        chunks = replace(given, rows=local[row], begin=begin, end=end)
        join = Block(
            peer=given.peer,
            num_columns=len(row),
            rows=local,
            begin=first,
            end=last,
            columns=torch.arange(len(row), dtype=torch.int32, device=long.device),
        )
        return Split(num_edges, mean_degree, long.tolist(), [0, *last.tolist()], chunks, join)
