"""Sums to which very many messages or pieces each add a part.

Each addition to a float32 sum may have an error of 2^-25 of the sum, always in the same direction
if the numbers added are equal. A kernel adds the edges of one block with sufficient accuracy; what
remains are rows whose edges arrive in many messages, and weights that get a gradient from every
piece of the edges. Up to `MANY` parts are added in float32 as they arrive, with an error below
1e-5. Hubs, the rows with more, move their float32 sums into float64 totals after every `SETTLED`
parts. All other rows keep their results bit for bit.

The hubs of an exchange are found once and cached, since finding them on a GPU has to wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.partitioned import EdgeBlocks
from hpcgnn.kernels.block import Block, Derivation, T

MANY = 128  # parts that are added one by one in float32
SETTLED = 32  # parts of a hub, whose error then stays below 1e-6


class CutBlocks(Protocol):
    """Blocks whose column ranges arrive in messages: `EdgeBlocks`, or a plan of sums."""

    @property
    def rank(self) -> int: ...

    @property
    def blocks(self) -> list[Block]: ...

    def derived(self, what: Derivation[CutBlocks, T]) -> T: ...


@dataclass(frozen=True)
class HubRows:
    """The local rows, of `num_rows`, that get more than `MANY` parts: int64, None if no row does.

    Attributes:
        most: columns of the ranges (messages) into which each block is cut.
        local: whether the block between local nodes is cut, too.
        piece: edges of the pieces into which these ranges are cut, in row order; 0 if they aren't.
        slab: number of edges per further part that a block may add to any row; 0 for no such parts.
    """

    num_rows: int
    most: int
    local: bool = False
    piece: int = 0
    slab: int = 0

    def build(self, given: CutBlocks, /) -> Tensor | None:
        cuts = []
        for block in given.blocks:
            if block.num_rows and (self.local or block.peer != given.rank):
                ranges = -(-block.num_columns // self.most)
                cuts.append((block, ranges + (block.num_edges // self.slab if self.slab else 0)))
        times_N = visits(self.num_rows, cuts, self.piece)
        return None if times_N is None else often(times_N)


def visits(num_rows: int, cuts: Sequence[tuple[Block, int]], piece: int) -> Tensor | None:
    """Return an upper bound on the parts that hold an edge of each row: int64 `[num_rows]`.

    None if no row can have more than `MANY`.

    Args:
        cuts: blocks, and the number of column ranges that each is cut into.
        piece: as in `HubRows`.
    """
    most = sum(ranges for _, ranges in cuts)
    if piece:  # the first piece of a row's edges, the last, and those between
        most = 2 * most + sum(block.num_edges // piece for block, _ in cuts)
    if most <= MANY:
        return None
    times_N = torch.zeros(num_rows, dtype=torch.int64, device=cuts[0][0].device)
    for block, ranges in cuts:
        rows = slice(None) if block.rows is None else block.rows.long()
        edges = block.end - block.begin
        parts = 2 * ranges + edges // piece if piece else torch.full_like(edges, ranges)
        times_N[rows] += torch.minimum(edges, parts)
    return times_N


def often(times_N: Tensor) -> Tensor | None:
    """Return the rows that more than `MANY` parts are added to: int64; None if no row qualifies."""
    rows = torch.nonzero(times_N > MANY).flatten()
    return rows if len(rows) else None


class RowSums:
    """The same rows of several matrices, to which parts are added between `begin` and `end`.

    Call `added` after each part, whichever rows it adds to. After every `SETTLED` parts, the sums
    of the hubs are moved into float64 and reset to 0.

    Attributes:
        rows: the hubs; None without.
    """

    def __init__(self, *matrices: Tensor) -> None:
        self._matrices = matrices
        self._count = 0
        self.rows: Tensor | None = None

    def begin_messages(self, blocks: CutBlocks, most: int) -> None:
        """Begin to add messages of at most `most` columns of a remote block each; find hubs."""
        self.begin(blocks.derived(HubRows(len(self._matrices[0]), most)))

    def begin(self, hubs: Tensor | None) -> None:
        """Begin to add parts.

        Args:
            hubs: rows that more than `MANY` parts are added to, int64; None without.
        """
        if hubs is not None and self._matrices[0].dtype != torch.float64:
            self._count, self.rows = 0, hubs
            self._start(len(hubs))

    def added(self) -> None:
        """Note that a part was added, at most once to each row."""
        self._count += 1
        if self.rows is not None and self._count % SETTLED == 0:
            self._settle(self.rows)

    def settled_before(self, row: int) -> int:
        """Return `row`, or the first hub before it: until `end` the sums of hubs are incomplete."""
        return row if self.rows is None else min(row, int(self.rows[0]))

    def end(self) -> None:
        """Write the sums back to the matrices."""
        if self.rows is not None:
            self._settle(self.rows)
            self._finish(self.rows)
            self.rows = None

    def _start(self, count: int) -> None:
        self._totals = [
            m.new_zeros(count, *m.shape[1:], dtype=torch.float64) for m in self._matrices
        ]

    def _settle(self, rows: Tensor) -> None:
        for matrix, total in zip(self._matrices, self._totals, strict=True):
            total += matrix[rows]
            matrix[rows] = 0

    def _finish(self, rows: Tensor) -> None:
        for matrix, total in zip(self._matrices, self._totals, strict=True):
            matrix[rows] = total.to(matrix.dtype)
        del self._totals


class SoftmaxSums(RowSums):
    """`RowSums` of a running softmax and the sum weighted by it."""

    def __init__(self, softmax: kernels.RunningSoftmax) -> None:
        super().__init__(softmax.row_max, softmax.row_sum, softmax.out)

    def _start(self, count: int) -> None:
        super()._start(count)
        self._totals[0].fill_(-torch.inf)

    def _settle(self, rows: Tensor) -> None:
        part_max, part_sum, part = (matrix[rows].double() for matrix in self._matrices)
        row_max, row_sum, out = self._totals
        best = torch.maximum(row_max, part_max)
        base = best.masked_fill(best == -torch.inf, 0)
        before, now = (row_max - base).exp(), (part_max - base).exp()
        shape = (*best.shape, -1)
        out = out.view(shape) * before[:, :, None] + part.view(shape) * now[:, :, None]
        self._totals = [best, row_sum * before + part_sum * now, out.flatten(1)]
        for matrix, empty in zip(self._matrices, (-torch.inf, 0, 0), strict=True):
            matrix[rows] = empty


@dataclass(frozen=True)
class _OftenSent:
    """The local rows that are sent to more than `MANY` peers, as in `HubRows`."""

    num_rows: int

    def build(self, given: EdgeBlocks, /) -> Tensor | None:
        if given.num_parts - 1 <= MANY:
            return None
        device = given.send_rows[0].device
        times_N = torch.zeros(self.num_rows, dtype=torch.int64, device=device)
        for rows in given.send_rows:
            times_N[rows.long()] += 1
        return often(times_N)


class Returned:
    """Rows returned by each peer that local rows were sent to, added to matrices."""

    def __init__(self, edges: EdgeBlocks, *matrices: Tensor) -> None:
        self.matrices, self._sums = matrices, RowSums(*matrices)
        self._sums.begin(edges.derived(_OftenSent(len(matrices[0]))))

    def accept(self, rows: Tensor, *parts: Tensor) -> None:
        """Add returned `parts`, one per matrix, to `rows` (int32, distinct)."""
        for part, matrix in zip(parts, self.matrices, strict=True):
            kernels.add_rows(part, rows, matrix)
        self._sums.added()

    def end(self) -> None:
        self._sums.end()


class Totals:
    """Tensors to which each of very many pieces adds, whatever its rows."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.parts = [torch.zeros_like(tensor) for tensor in like]
        self._totals: list[Tensor] | None = None
        self._count = 0

    def add(self, parts: Iterable[Tensor | None]) -> None:
        """Add the tensors of one piece; None counts as 0."""
        for total, part in zip(self.parts, parts, strict=True):
            if part is not None:
                total += part
        self.added()

    def added(self) -> None:
        """Note that a piece was added to `parts`."""
        self._count += 1
        if self._count == MANY:
            self._settle()

    def result(self) -> list[Tensor]:
        if self._totals is None:
            return self.parts
        self._settle()
        return [t.to(part.dtype) for t, part in zip(self._totals, self.parts, strict=True)]

    def _settle(self) -> None:
        self._count = 0
        if self._totals is None:
            self._totals = [torch.zeros_like(part, dtype=torch.float64) for part in self.parts]
        for total, part in zip(self._totals, self.parts, strict=True):
            total += part
            part.zero_()
