"""Sums that very many messages or pieces add to, a part each.

Every number added to a float32 sum may cost 2^-25 of it, and always the same way where equal
numbers are added. A kernel adds the edges of one block exactly enough; what is left are rows whose
edges come with many messages, and weights that every piece of the edges has a gradient for. Up to
`MANY` parts go into float32 as they come, an error below 1e-5; hubs, which have more, settle what
they have got into float64 after each. All others are left alone, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.partitioned import EdgeBlocks
from hpcgnn.kernels.block import Block

MANY = 128  # parts that float32 adds up one by one


def visits(num_rows: int, cuts: Iterable[tuple[Block, int]], piece: int = 0) -> Tensor | None:
    """At most so many parts of these blocks hold an edge of each row: int64 `[num_rows]`.

    None where it can't be more than `MANY`.

    Args:
        cuts: blocks, and into how many ranges of columns each is cut.
        piece: edges into which these ranges are cut again, in the order of the rows; 0 for none.
    """
    cuts = [(block, ranges) for block, ranges in cuts if block.num_rows]
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


class RowSums:
    """The same rows of some matrices, to which parts are added between `begin` and `end`.

    After each part, `settle` takes what it added to hubs into float64 and leaves zeros there.
    """

    def __init__(self, *matrices: Tensor) -> None:
        self._matrices = matrices
        self._hub_N: Tensor | None = None  # its number, -1 for rows that are none

    @property
    def active(self) -> bool:
        """Whether there are hubs."""
        return self._hub_N is not None

    def begin_messages(self, cuts: Iterable[tuple[Block, int]]) -> None:
        """As `begin`, where the ranges of blocks add."""
        self.begin(visits(len(self._matrices[0]), cuts))

    def begin(self, times_N: Tensor | None) -> None:
        """Finds the hubs: rows that more than `MANY` parts add to; None where none can be."""
        if times_N is None or self._matrices[0].dtype == torch.float64:
            return
        self._rows = torch.nonzero(times_N > MANY).flatten()
        if len(self._rows):
            self._hub_N = torch.full_like(times_N, -1, dtype=torch.int32)
            self._hub_N[self._rows] = torch.arange(
                len(self._rows), dtype=torch.int32, device=times_N.device
            )
            self._start(len(self._rows))

    def settle(self, rows: Tensor | None) -> None:
        """After a part that added to these rows, no two the same; None for all rows."""
        if self._hub_N is None:
            return
        if rows is None:
            self._settle(self._rows, slice(None))
            return
        rows = rows.long()
        hub = self._hub_N[rows]
        found = torch.nonzero(hub >= 0).flatten()
        if len(found):
            self._settle(rows[found], hub[found].long())

    def end(self) -> None:
        """Writes the sums."""
        if self._hub_N is not None:
            self._settle(self._rows, slice(None))
            self._finish()
            self._hub_N = None

    def _start(self, count: int) -> None:
        self._totals = [
            m.new_zeros(count, *m.shape[1:], dtype=torch.float64) for m in self._matrices
        ]

    def _settle(self, rows: Tensor, hubs: Tensor | slice) -> None:
        for matrix, total in zip(self._matrices, self._totals, strict=True):
            total[hubs] += matrix[rows]
            matrix[rows] = 0

    def _finish(self) -> None:
        for matrix, total in zip(self._matrices, self._totals, strict=True):
            matrix[self._rows] = total.to(matrix.dtype)
        del self._totals


class SoftmaxSums(RowSums):
    """As `RowSums`, for a running softmax and the sum weighted by it."""

    def __init__(self, softmax: kernels.RunningSoftmax) -> None:
        super().__init__(softmax.row_max, softmax.row_sum, softmax.out)

    def _start(self, count: int) -> None:
        super()._start(count)
        self._totals[0].fill_(-torch.inf)

    def _settle(self, rows: Tensor, hubs: Tensor | slice) -> None:
        part_max, part_sum, part = (matrix[rows].double() for matrix in self._matrices)
        row_max, row_sum, out = (total[hubs] for total in self._totals)
        best = torch.maximum(row_max, part_max)
        base = best.masked_fill(best == -torch.inf, 0)
        before, now = (row_max - base).exp(), (part_max - base).exp()
        shape = (*best.shape, -1)
        out = out.view(shape) * before[:, :, None] + part.view(shape) * now[:, :, None]
        settled = (best, row_sum * before + part_sum * now, out.flatten(1))
        for total, value in zip(self._totals, settled, strict=True):
            total[hubs] = value
        for matrix, empty in zip(self._matrices, (-torch.inf, 0, 0), strict=True):
            matrix[rows] = empty


class Returned:
    """What comes back for local rows, a row for each peer that was sent it, added to matrices."""

    def __init__(self, edges: EdgeBlocks, *matrices: Tensor) -> None:
        self.matrices, self._sums = matrices, RowSums(*matrices)
        if edges.num_parts - 1 <= MANY:
            return
        times_N = torch.zeros(len(matrices[0]), dtype=torch.int64, device=matrices[0].device)
        for rows in edges.send_rows:
            times_N[rows.long()] += 1
        self._sums.begin(times_N)

    def accept(self, rows: Tensor, *parts: Tensor) -> None:
        """Rows int32, no two the same, and what came for them: one part for each matrix."""
        for part, matrix in zip(parts, self.matrices, strict=True):
            kernels.add_rows(part, rows, matrix)
        self._sums.settle(rows)

    def end(self) -> None:
        self._sums.end()


class Totals:
    """Tensors that every piece of very many adds to, whatever its rows."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.parts = [torch.zeros_like(tensor) for tensor in like]
        self._totals: list[Tensor] | None = None
        self._count = 0

    def add(self, parts: Iterable[Tensor | None]) -> None:
        """A piece's; None for 0."""
        for total, part in zip(self.parts, parts, strict=True):
            if part is not None:
                total += part
        self.added()

    def added(self) -> None:
        """Tells that a piece was added to `parts`."""
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
