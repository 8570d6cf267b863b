"""Sums, extrema and transposes on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.kernels.backend import Rows
from hpcgnn.kernels.block import Block, RowScale
from hpcgnn.kernels.checks import sum_type
from hpcgnn.kernels.chunks import LONGEST, split_of
from hpcgnn.kernels.cuda.launch import edges, int32, launch, matrix, pointer
from hpcgnn.kernels.cuda.shapes import BARE, NAMES, SCALED, WEIGHTED, RowShape, vector_width

_MOST_MAXIMUM = 4  # most columns per lane: maxima keep a count beside each


def range_rows(block: Block, most: int) -> tuple[Tensor, Tensor]:
    """Return the rows with edges in each range of `most` columns, and where each range begins."""
    counts = block.end - block.begin
    row = torch.repeat_interleave(torch.arange(block.num_rows, device=block.device), counts)
    edge = torch.arange(len(row), device=block.device)
    edge += (block.begin - (counts.cumsum(0) - counts))[row]
    number = (block.columns[edge] - block.column_offset).long() // most
    pairs = torch.unique(number * max(block.num_rows, 1) + row)
    ranges = -(-block.num_columns // most)
    bounds = torch.arange(ranges + 1, device=block.device) * max(block.num_rows, 1)
    rows = (pairs % max(block.num_rows, 1)).to(torch.int32)
    return rows, torch.searchsorted(pairs, bounds)


def spmm(
    block: Block,
    x: Tensor,
    out: Tensor,
    rows: Rows,
    adds: bool,
    scale: Tensor | None = None,
    after: RowScale | None = None,
) -> None:
    split, width = split_of(block), x.shape[1]
    if rows[0] == rows[1] or width == 0:
        return
    if split.num_edges == 0 and adds:
        return
    _spmm(block, x, scale, out, rows, split.mean_degree, adds=adds, after=after)
    hubs = split.hubs(rows)
    if hubs is not None:
        part = x.new_empty(hubs.last - hubs.first, width, dtype=sum_type(x.dtype))
        chunks = (hubs.first, hubs.last)
        _spmm(hubs.chunks, x, scale, part, chunks, LONGEST, partial=True, adds=False)
        after = None if after is None else RowScale(after.scale_N)
        spmm(hubs.join, part, out, (hubs.low, hubs.high), True, None, after)


def _spmm(
    block: Block,
    x: Tensor,
    scale: Tensor | None,
    out: Tensor,
    rows: Rows,
    mean_degree: float,
    *,
    partial: bool = False,
    adds: bool = True,
    after: RowScale | None = None,
) -> None:
    width, weight = x.shape[1], block.weight
    vector = vector_width(width, (x, out))
    shape = RowShape.of(width, vector, mean_degree)
    kind = SCALED if scale is not None else BARE if weight is None else WEIGHTED
    launch(
        "spmm",
        f"spmm<{NAMES[x.dtype]}, {NAMES[out.dtype]}, {vector}, {kind}>",
        shape.blocks(rows[1] - rows[0]),
        (
            *edges(block, rows, LONGEST),
            pointer(weight),
            pointer(scale),
            pointer(None if after is None else after.scale_N),
            pointer(None if after is None else after.loop_N),
            *matrix(x),
            *matrix(out),
            *map(int32, (width, shape.lanes_log, shape.span_log, partial, adds)),
        ),
        x.device,
    )


def spmm_max(block: Block, x: Tensor, best: Tensor, ties: Tensor, sign: int, rows: Rows) -> None:
    _spmm_max(block, x, None, best, ties, sign, rows)


def _spmm_max(
    block: Block,
    x: Tensor,
    counts: Tensor | None,
    best: Tensor,
    ties: Tensor,
    sign: int,
    rows: Rows,
) -> None:
    """Compute `spmm_max`; `counts`: ties of the rows of x if these are maxima, None: 1 each."""
    split, width = split_of(block), x.shape[1]
    if rows[0] == rows[1] or width == 0 or split.num_edges == 0:
        return
    _maximum(block, x, counts, best, ties, sign, rows, split.mean_degree)
    hubs = split.hubs(rows)
    if hubs is not None:
        shape = (hubs.last - hubs.first, width)
        part = x.new_full(shape, -sign * torch.inf)
        part_ties = ties.new_zeros(shape)
        chunks = (hubs.first, hubs.last)
        _maximum(hubs.chunks, x, counts, part, part_ties, sign, chunks, LONGEST, partial=True)
        _spmm_max(hubs.join, part, part_ties, best, ties, sign, (hubs.low, hubs.high))


def _maximum(
    block: Block,
    x: Tensor,
    counts: Tensor | None,
    best: Tensor,
    ties: Tensor,
    sign: int,
    rows: Rows,
    mean_degree: float,
    partial: bool = False,
) -> None:
    width = x.shape[1]
    accessed = (x, best, ties) if counts is None else (x, best, ties, counts)
    vector = vector_width(width, accessed, _MOST_MAXIMUM)
    shape = RowShape.of(width, vector, mean_degree)
    counted = "false" if counts is None else "true"
    launch(
        "maximum",
        f"maximum<{NAMES[x.dtype]}, {vector}, {counted}>",
        shape.blocks(rows[1] - rows[0]),
        (
            *edges(block, rows, LONGEST),
            *matrix(x),
            *matrix(counts),
            *matrix(best),
            *matrix(ties),
            *map(int32, (width, sign < 0, shape.lanes_log, shape.span_log, partial)),
        ),
        x.device,
    )


def spmm_max_backward(
    block: Block, best: Tensor, share: Tensor, x: Tensor, grad: Tensor, rows: Rows
) -> None:
    split, width = split_of(block), x.shape[1]
    if rows[0] == rows[1] or width == 0 or split.num_edges == 0:
        return
    _maximum_backward(block, best, share, x, grad, rows, split.mean_degree)
    hubs = split.hubs(rows)
    if hubs is not None:
        part = x.new_zeros(hubs.last - hubs.first, width, dtype=sum_type(x.dtype))
        chunks = (hubs.first, hubs.last)
        _maximum_backward(hubs.chunks, best, share, x, part, chunks, LONGEST, partial=True)
        spmm(hubs.join, part, grad, (hubs.low, hubs.high), adds=True)


def _maximum_backward(
    block: Block,
    best: Tensor,
    share: Tensor,
    x: Tensor,
    grad: Tensor,
    rows: Rows,
    mean_degree: float,
    partial: bool = False,
) -> None:
    width = x.shape[1]
    vector = vector_width(width, (x, best, share, grad), _MOST_MAXIMUM)
    shape = RowShape.of(width, vector, mean_degree)
    launch(
        "maximum",
        f"maximum_backward<{NAMES[x.dtype]}, {NAMES[grad.dtype]}, {vector}>",
        shape.blocks(rows[1] - rows[0]),
        (
            *edges(block, rows, LONGEST),
            *matrix(best),
            *matrix(share),
            *matrix(x),
            *matrix(grad),
            *map(int32, (width, shape.lanes_log, shape.span_log, partial)),
        ),
        x.device,
    )


def transpose(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Return each column's first edge (columns + 1), each new edge's local row and old index."""
    device, counts = block.device, block.end - block.begin
    number = torch.arange(split_of(block).num_edges, device=device)
    row = torch.repeat_interleave(torch.arange(block.num_rows, device=device), counts)
    edge = number + (block.begin - (counts.cumsum(0) - counts))[row]
    columns = block.columns[edge] - block.column_offset
    order = torch.argsort(columns, stable=True)
    pointers = torch.zeros(block.num_columns + 1, dtype=torch.int64, device=device)
    torch.cumsum(torch.bincount(columns, minlength=block.num_columns), 0, out=pointers[1:])
    local = row.to(torch.int32) if block.rows is None else block.rows[row]
    return pointers, local[order], edge[order]
