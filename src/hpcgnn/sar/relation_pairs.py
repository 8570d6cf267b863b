"""Edges of a block grouped into pairs of a relation and a row, or of a relation and a column.

With one weight matrix per relation, `y_i = sum over edges of W_r^T x_j` needs no product per edge:
either sum the `x_j` of each pair (relation, row) and multiply the sums, or multiply the `x_j` of
each pair (relation, column) once and sum the products. Both are: *gather* rows for the pairs,
multiply those of each relation by its matrix, *scatter* the pairs to rows. Pairs are ordered by
relation and processed in slabs, so that their rows need little memory, whatever the graph.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type

SLAB = 2048  # pairs on a CPU: their rows fit caches, and the allocator reuses their arrays
SLAB_ON_GPU = 1 << 18


def slab_size(device: torch.device) -> int:
    """Return the number of pairs processed at a time."""
    return SLAB if device.type == "cpu" else SLAB_ON_GPU


@dataclass(frozen=True)
class Slab:
    """Pairs `low .. high - 1`.

    Attributes:
        parts: (relation, first, last) of the pairs, counted from `low`; `last` is exclusive.
        gather: has a row per pair of the slab, none of them empty.
        scatter: adds rows of the slab's pairs to local rows.
    """

    low: int
    high: int
    parts: list[tuple[int, int, int]]
    gather: Block
    scatter: Block


@dataclass(frozen=True)
class RelationPairs:
    """The pairs of a block, `rows` are their local rows (`by_row`)."""

    rows: Tensor
    slabs: list[Slab]

    def collect(self, slab: Slab, x_MF: Tensor) -> Tensor:
        """Return the sum of rows that each pair of the slab gathers: `[pairs, F]`."""
        dtype = sum_type(x_MF.dtype)
        out_SF = x_MF.new_empty(slab.high - slab.low, x_MF.shape[1], dtype=dtype)
        kernels.spmm(slab.gather, x_MF, out_SF, adds=False)
        return out_SF

    def add(self, slab: Slab, pairs_SF: Tensor, out_NF: Tensor) -> None:
        """Add the slab's rows to the local rows of their pairs."""
        kernels.spmm(slab.scatter, pairs_SF, out_NF)


def multiply(slab: Slab, pairs_SF: Tensor, weight_RFG: Tensor) -> Tensor:
    """Return the rows of the slab's pairs times their relation's matrix: `[pairs, G]`."""
    out_SG = pairs_SF.new_empty(len(pairs_SF), weight_RFG.shape[2])
    for relation, first, last in slab.parts:
        torch.mm(pairs_SF[first:last], weight_RFG[relation], out=out_SG[first:last])
    return out_SG


@dataclass(frozen=True)
class EdgeList:
    """The edges of a block, each field `[e]`. `factor`: float32, None for 1 everywhere."""

    row: Tensor  # local row, int64
    column: Tensor  # int32
    relation: Tensor  # int32
    factor: Tensor | None


def edge_list(block: Block, factor_E: Tensor | None) -> EdgeList:
    """Return the edges in block order; `factor_E` is of all edges that the block was cut from."""
    counts = block.end - block.begin
    local = torch.arange(block.num_rows, device=counts.device)
    row = torch.repeat_interleave(local if block.rows is None else block.rows.long(), counts)
    ends = counts.cumsum(0)
    shift = torch.repeat_interleave(block.begin - (ends - counts), counts)
    place = shift.add_(torch.arange(len(row), device=row.device))
    column = block.columns[place] - block.column_offset
    relation = torch.empty(0, dtype=torch.int32, device=row.device)
    if block.relation is not None:
        relation = block.relation[place]
    return EdgeList(row, column, relation, None if factor_E is None else factor_E[place])


def count_pairs(edges: EdgeList, by: str) -> int:
    """Return the number of distinct pairs of a relation and a `row` or `column`."""
    return len(torch.unique(_keys(edges, by)[0]))


def by_row(block: Block, edges: EdgeList, num_relations: int, even: bool) -> RelationPairs:
    """Return pairs (relation, row); `even`: all edges of a pair have the same factor."""
    keys, base = _keys(edges, "row")
    keys, order = torch.sort(keys, stable=True)
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    pointer = _pointer(counts)
    factor = None if edges.factor is None else edges.factor[order]
    gather = _block(
        block.peer, block.num_columns, pointer, edges.column[order], None if even else factor
    )
    pair = torch.arange(len(keys), device=keys.device)
    scatter_factor = None if factor is None or not even else factor[pointer[:-1]]
    rows, relation = keys % base, keys // base
    slabs = _slabs(gather, relation, num_relations, rows, pair, scatter_factor)
    return RelationPairs(rows.to(torch.int32), slabs)


def by_column(block: Block, edges: EdgeList, num_relations: int) -> RelationPairs:
    """Return pairs (relation, column)."""
    keys, base = _keys(edges, "column")
    keys, order = torch.sort(keys, stable=True)
    keys, inverse = torch.unique_consecutive(keys, return_inverse=True)
    pointer = torch.arange(len(keys) + 1, device=keys.device)
    gather = _block(block.peer, block.num_columns, pointer, (keys % base).to(torch.int32), None)
    factor = None if edges.factor is None else edges.factor[order]
    slabs = _slabs(gather, keys // base, num_relations, edges.row[order], inverse, factor)
    return RelationPairs(gather.columns[:0], slabs)


def _keys(edges: EdgeList, by: str) -> tuple[Tensor, int]:
    """Return `relation * base + row or column` of each edge, and `base`."""
    value = edges.row if by == "row" else edges.column
    base = int(value.max()) + 1 if len(value) else 1
    return (edges.relation.long() * base).add_(value), base


def _pointer(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _slabs(
    gather: Block,
    relation: Tensor,
    num_relations: int,
    entry_row: Tensor,
    entry_pair: Tensor,
    factor: Tensor | None,
) -> list[Slab]:
    """Return slabs of pairs with their scatters; the entries are given in ascending pair order."""
    device = relation.device
    size = slab_size(device)
    bounds = torch.searchsorted(relation, torch.arange(num_relations + 1, device=device)).tolist()
    base = int(entry_row.max()) + 1 if len(entry_row) else 1
    keys, order = torch.sort((entry_pair // size).mul_(base).add_(entry_row), stable=True)
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    rows, pointer = (keys % base).to(torch.int32), _pointer(counts)
    columns = (entry_pair[order] % size).to(torch.int32)
    factor = None if factor is None else factor[order]
    number = -(-len(relation) // size)
    first = torch.searchsorted(keys, torch.arange(number + 1, device=device) * base).tolist()
    found = []
    for slab in range(number):
        low, high = slab * size, min((slab + 1) * size, len(relation))
        begin, end = first[slab], first[slab + 1]
        scatter = Block(
            peer=gather.peer,
            num_columns=high - low,
            rows=rows[begin:end],
            begin=pointer[begin:end],
            end=pointer[begin + 1 : end + 1],
            columns=columns,
            weight=factor,
        )
        own = kernels.rows_between(gather, low, high)
        found.append(Slab(low, high, _parts(bounds, low, high), own, scatter))
    return found


def _parts(bounds: list[int], low: int, high: int) -> list[tuple[int, int, int]]:
    """Return a slab's `parts`; pairs of relation r are `bounds[r] .. bounds[r + 1] - 1`."""
    start, found = low, []
    while low < high:
        relation = bisect_right(bounds, low) - 1
        last = min(bounds[relation + 1], high)
        found.append((relation, low - start, last - start))
        low = last
    return found


def _block(
    peer: int, num_columns: int, pointer: Tensor, columns: Tensor, weight: Tensor | None
) -> Block:
    return Block(
        peer=peer,
        num_columns=num_columns,
        rows=None,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=columns,
        weight=weight,
    )
