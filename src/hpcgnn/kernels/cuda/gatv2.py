"""GATv2 attention on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.kernels.attention import (
    GATv2Gradients,
    Projections,
    ResultGradient,
    RunningSoftmax,
    Scoring,
)
from hpcgnn.kernels.backend import Pieces, Rows
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.kernels.chunks import split_of, transposed
from hpcgnn.kernels.cuda.dropout import edge_dropout
from hpcgnn.kernels.cuda.gat import (
    Kernel,
    add_hubs,
    edge_term,
    run_softmax,
    softmax_arguments,
)
from hpcgnn.kernels.cuda.launch import THREADS, WARP, matrices, matrix, pointer

_MOST_BLOCKS = 1024  # a fixed number: what each warp adds up must not depend on the GPU


def gatv2_forward(
    block: Block,
    inputs: Projections,
    softmax: RunningSoftmax,
    scoring: Scoring,
    rows: Rows,
) -> None:
    heads, wide = inputs.att.shape[0], _read_wide(inputs, scoring)

    def run(part: Block, softmax: RunningSoftmax, piece: Rows, partial: bool) -> None:
        Kernel.of(heads, (*wide, softmax.out)).launch(
            "gatv2_forward",
            part,
            piece,
            (
                *matrices(inputs.zl, inputs.zr),
                pointer(wide[2]),
                *softmax_arguments(softmax),
                *edge_term(block, scoring),
                *edge_dropout(scoring.dropout, inputs.zl, reverse=False),
            ),
            scoring,
            partial=partial,
        )

    run_softmax(block, rows, run, softmax)


def gatv2_backward(
    block: Block,
    inputs: Projections,
    result: ResultGradient,
    grads: GATv2Gradients,
    scoring: Scoring,
    pieces: Pieces,
) -> None:
    split, heads = split_of(block), inputs.att.shape[0]
    if split.num_edges == 0:
        return
    wide = (*_read_wide(inputs, scoring), result.g)
    with_features = scoring.edge_weight is not None
    known = (
        *matrices(inputs.zl, inputs.zr),
        pointer(wide[2]),
        *matrices(result.g, result.lse, result.d),
    )
    grad_edge_weight = grads.edge_weight if with_features else None

    def by_destination(part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        blocks = min(-(-(piece[1] - piece[0]) * WARP // THREADS), _MOST_BLOCKS)
        kernel = Kernel.of(heads, (*wide, to[0]))
        sums = _WarpSums.of(kernel, blocks, grads.att, grad_edge_weight)
        kernel.launch(
            "gatv2_backward_right",
            part,
            piece,
            (
                *known,
                *matrix(to[0]),
                pointer(sums.att),
                pointer(sums.matrix),
                *edge_term(block, scoring),
                *edge_dropout(scoring.dropout, inputs.zl, reverse=False),
            ),
            scoring,
            partial=partial,
            keeps=False,
            source="gatv2_backward",
            blocks=(blocks, kernel.shape.tiles),
        )
        sums.add_to(grads.att, grad_edge_weight)

    def by_source(part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        Kernel.of(heads, (*wide, to[0])).launch(
            "gatv2_backward_left",
            part,
            piece,
            (
                *known,
                *matrix(to[0]),
                *edge_term(part, scoring),
                *edge_dropout(scoring.dropout, inputs.zl, reverse=True),
            ),
            scoring,
            partial=partial,
            keeps=False,
            source="gatv2_backward",
        )

    for rows in pieces(block):
        if rows[0] < rows[1]:
            by_destination(block, (grads.zr,), rows, False)
            add_hubs(split.hubs(rows), by_destination, (grads.zr,))
    turned = transposed(block, inputs.zr.shape[0], with_features=with_features)
    for rows in pieces(turned):
        if rows[0] < rows[1]:
            by_source(turned, (grads.zl,), rows, False)
            add_hubs(split_of(turned).hubs(rows), by_source, (grads.zl,))


def _read_wide(inputs: Projections, scoring: Scoring) -> tuple[Tensor, ...]:
    """zl, zr, att in the type of sums, and the edge weight: what is read in wide words."""
    att = inputs.att.detach().to(sum_type(inputs.zl.dtype)).contiguous()
    weight = () if scoring.edge_weight is None else (scoring.edge_weight,)
    return (inputs.zl, inputs.zr, att, *weight)


@dataclass(frozen=True)
class _WarpSums:
    """A sum of its own for each warp, or group of lanes, to be added up in a fixed order.

    `att`: `[warps, heads * channels]`; `matrix`: float64 `[warps * groups, features, heads *
    channels]`.
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
        shape = (warps * kernel.shape.groups, *grad_edge_matrix.shape)
        return _WarpSums(att, grad_edge_matrix.new_zeros(shape, dtype=torch.float64))

    def add_to(self, grad_att: Tensor, grad_edge_matrix: Tensor | None) -> None:
        grad_att.add_(self.att.sum(0, dtype=torch.float64).view_as(grad_att))
        if grad_edge_matrix is not None and self.matrix is not None:
            grad_edge_matrix.add_(self.matrix.sum(0))
