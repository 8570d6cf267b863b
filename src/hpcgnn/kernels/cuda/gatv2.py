"""GATv2 attention on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.kernels.chunks import kept, split_of
from hpcgnn.kernels.cuda.gat import (
    Kernel,
    Rows,
    Sums,
    active,
    add_hubs,
    dropout_arguments,
    edge_term,
    run_softmax,
)
from hpcgnn.kernels.cuda.launch import THREADS, WARP, matrix, pointer
from hpcgnn.kernels.cuda.sums import transpose

if TYPE_CHECKING:
    from hpcgnn.kernels.masks import EdgeDropout


_MOST_BLOCKS = 1024  # a fixed number: what each warp adds up must not depend on the GPU


def gatv2_forward(
    block: Block,
    left: Tensor,
    right: Tensor,
    att: Tensor,
    top: Tensor,
    total: Tensor,
    out: Tensor,
    slope: float,
    dropout: EdgeDropout | None,
    rows: Rows,
    *,
    edge_matrix: Tensor | None = None,
) -> None:
    heads, wide = att.shape[0], () if edge_matrix is None else (edge_matrix,)
    att = _vector(att, left)

    def run(part: Block, sums: Sums, piece: Rows, partial: bool) -> None:
        Kernel.of(heads, (left, right, att, *wide, sums[2])).launch(
            "gatv2_forward",
            part,
            piece,
            (
                *(x for tensor in (left, right) for x in matrix(tensor)),
                pointer(att),
                *(x for tensor in sums for x in matrix(tensor)),
                *edge_term(block, edge_matrix),
                *dropout_arguments(dropout, reverse=False),
            ),
            slope,
            extras=active(dropout) or edge_matrix is not None,
            partial=partial,
        )

    run_softmax(block, rows, run, (top, total, out))


def gatv2_backward(
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
    dropout: EdgeDropout | None,
    rows: Rows,
    *,
    edge_matrix: Tensor | None = None,
    grad_edge_matrix: Tensor | None = None,
) -> None:
    split, heads = split_of(block), att.shape[0]
    if rows[0] == rows[1] or split.num_edges == 0:
        return
    att = _vector(att, left)
    wide = (left, right, att, g) if edge_matrix is None else (left, right, att, g, edge_matrix)
    extras = active(dropout) or edge_matrix is not None
    known = (
        *(x for tensor in (left, right) for x in matrix(tensor)),
        pointer(att),
        *(x for tensor in (g, lse, d) for x in matrix(tensor)),
    )

    def by_destination(part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        blocks = min(-(-(piece[1] - piece[0]) * WARP // THREADS), _MOST_BLOCKS)
        kernel = Kernel.of(heads, (*wide, to[0]))
        sums = _WarpSums.of(kernel, blocks, grad_att, grad_edge_matrix)
        kernel.launch(
            "gatv2_backward_right",
            part,
            piece,
            (
                *known,
                *matrix(to[0]),
                *map(pointer, (sums.att, sums.matrix)),
                *edge_term(block, edge_matrix),
                *dropout_arguments(dropout, reverse=False),
            ),
            slope,
            extras=extras,
            partial=partial,
            keeps=False,
            source="gatv2_backward",
            blocks=(blocks, kernel.shape.tiles),
        )
        sums.add_to(grad_att, grad_edge_matrix)

    def by_source(part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        Kernel.of(heads, (*wide, to[0])).launch(
            "gatv2_backward_left",
            part,
            piece,
            (
                *known,
                *matrix(to[0]),
                *edge_term(part, edge_matrix),
                *dropout_arguments(dropout, reverse=True),
            ),
            slope,
            extras=extras,
            partial=partial,
            keeps=False,
            source="gatv2_backward",
        )

    by_destination(block, (grad_right,), rows, False)
    add_hubs(split.hubs(rows), by_destination, (grad_right,))
    turned = _turned(block, rows, right.shape[0], edge_matrix is not None)
    every = (0, turned.num_rows)
    by_source(turned, (grad_left,), every, False)
    add_hubs(split_of(turned).hubs(every), by_source, (grad_left,))


@dataclass(frozen=True)
class _WarpSums:
    """A sum of its own for each warp, or group of lanes, to be added up in a fixed order.

    `att`: `[warps, heads * channels]`; `matrix`: `[warps * groups, features, heads * channels]`.
    """

    att: Tensor
    matrix: Tensor | None

    @staticmethod
    def of(
        kernel: Kernel, blocks: int, grad_att: Tensor, grad_edge_matrix: Tensor | None
    ) -> _WarpSums:
        warps, dtype = blocks * THREADS // WARP, sum_type(kernel.dtype)
        att = grad_att.new_empty(warps, grad_att.numel(), dtype=dtype)
        if grad_edge_matrix is None:
            return _WarpSums(att, None)
        groups = WARP // (kernel.shape.lanes * kernel.shape.side)
        shape = (warps * groups, *grad_edge_matrix.shape)
        return _WarpSums(att, grad_edge_matrix.new_zeros(shape, dtype=dtype))

    def add_to(self, grad_att: Tensor, grad_edge_matrix: Tensor | None) -> None:
        grad_att.add_(self.att.sum(0).view_as(grad_att))
        if grad_edge_matrix is not None and self.matrix is not None:
            grad_edge_matrix.add_(self.matrix.sum(0))


def _vector(att: Tensor, like: Tensor) -> Tensor:
    return att.detach().to(sum_type(like.dtype)).contiguous()


def _turned(block: Block, rows: Rows, num_rows: int, with_features: bool) -> Block:
    """These rows of the block compressed by column; kept for the whole block."""
    if rows == (0, block.num_rows):
        name = "turned with features" if with_features else "turned"
        return kept(block, name, lambda: _transposed(block, num_rows, with_features))
    low, high = rows
    listed = block.rows
    if listed is None:
        listed = torch.arange(block.num_rows, dtype=torch.int32, device=block.device)
    part = replace(
        block, rows=listed[low:high], begin=block.begin[low:high], end=block.end[low:high]
    )
    return _transposed(part, num_rows, with_features)


def _transposed(block: Block, num_rows: int, with_features: bool) -> Block:
    pointers, local_rows, order = transpose(block)
    features = block.features[order] if with_features and block.features is not None else None
    return Block(
        peer=block.peer,
        num_columns=num_rows,
        rows=None,
        begin=pointers[:-1],
        end=pointers[1:],
        columns=local_rows,
        features=features,
    )
