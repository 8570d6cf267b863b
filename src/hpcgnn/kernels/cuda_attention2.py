"""GATv2 attention on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.graph import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.kernels.cuda_attention import (
    Kernel,
    Rows,
    Sums,
    active,
    add_hubs,
    dropout_arguments,
    run_softmax,
)
from hpcgnn.kernels.cuda_transpose import transpose
from hpcgnn.kernels.launch import THREADS, WARP, matrix, pointer
from hpcgnn.kernels.split import kept, split_of

if TYPE_CHECKING:
    from hpcgnn.kernels.dropout import Dropout

_MOST_BLOCKS = 1024  # a fixed number: what each warp adds up must not depend on the GPU


def attention2_forward(
    block: Block,
    left: Tensor,
    right: Tensor,
    att: Tensor,
    top: Tensor,
    total: Tensor,
    out: Tensor,
    slope: float,
    dropout: Dropout | None,
    rows: Rows,
) -> None:
    heads = att.shape[0]
    att = _vector(att, left)

    def run(part: Block, sums: Sums, piece: Rows, partial: bool) -> None:
        Kernel.of(heads, (left, right, att, sums[2])).launch(
            "attention2_forward",
            part,
            piece,
            (
                *(x for tensor in (left, right) for x in matrix(tensor)),
                pointer(att),
                *(x for tensor in sums for x in matrix(tensor)),
                *dropout_arguments(dropout, reverse=False),
            ),
            slope,
            extras=active(dropout),
            partial=partial,
        )

    run_softmax(block, rows, run, (top, total, out))


def attention2_backward(
    block: Block,
    left: Tensor,
    right: Tensor,
    att: Tensor,
    g: Tensor,
    lse: Tensor,
    d: Tensor,
    grad_left: Tensor,
    grad_right: Tensor,
    grad_att: Tensor,
    slope: float,
    dropout: Dropout | None,
    rows: Rows,
) -> None:
    split, heads = split_of(block), att.shape[0]
    if rows[0] == rows[1] or split.num_edges == 0:
        return
    att = _vector(att, left)
    known = tuple(
        x
        for tensor in (left, right, None, g, lse, d)
        for x in ((pointer(att),) if tensor is None else matrix(tensor))
    )

    def by_destination(part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        blocks = min(-(-(piece[1] - piece[0]) * WARP // THREADS), _MOST_BLOCKS)
        sums_WK = grad_att.new_empty(blocks * THREADS // WARP, left.shape[1], dtype=att.dtype)
        kernel = Kernel.of(heads, (left, right, att, g, to[0], sums_WK))
        kernel.launch(
            "attention2_backward_right",
            part,
            piece,
            (
                *known,
                *matrix(to[0]),
                pointer(sums_WK),
                *dropout_arguments(dropout, reverse=False),
            ),
            slope,
            extras=active(dropout),
            partial=partial,
            keeps=False,
            source="attention2_backward",
            blocks=(blocks, kernel.shape.tiles),
        )
        grad_att.add_(sums_WK.sum(0).view_as(grad_att))

    def by_source(part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        Kernel.of(heads, (left, right, att, g, to[0])).launch(
            "attention2_backward_left",
            part,
            piece,
            (*known, *matrix(to[0]), *dropout_arguments(dropout, reverse=True)),
            slope,
            extras=active(dropout),
            partial=partial,
            keeps=False,
            source="attention2_backward",
        )

    by_destination(block, (grad_right,), rows, False)
    add_hubs(split.hubs(rows), by_destination, (grad_right,))
    turned = _turned(block, rows, right.shape[0])
    every = (0, turned.num_rows)
    by_source(turned, (grad_left,), every, False)
    add_hubs(split_of(turned).hubs(every), by_source, (grad_left,))


def _vector(att: Tensor, like: Tensor) -> Tensor:
    return att.detach().to(sum_type(like.dtype)).contiguous()


def _turned(block: Block, rows: Rows, num_rows: int) -> Block:
    """These rows of the block compressed by column; kept for the whole block."""
    if rows == (0, block.num_rows):
        return kept(block, "turned", lambda: _transposed(block, num_rows))
    low, high = rows
    listed = block.rows
    if listed is None:
        listed = torch.arange(block.num_rows, dtype=torch.int32, device=block.begin.device)
    part = replace(
        block, rows=listed[low:high], begin=block.begin[low:high], end=block.end[low:high]
    )
    return _transposed(part, num_rows)


def _transposed(block: Block, num_rows: int) -> Block:
    pointers, local_rows, _ = transpose(block)
    return Block(
        peer=block.peer,
        num_columns=num_rows,
        rows=None,
        begin=pointers[:-1],
        end=pointers[1:],
        columns=local_rows,
    )
