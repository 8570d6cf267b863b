"""GATv2 attention on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
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

_MOST_BLOCKS = 1024  # fixed: the terms of each warp's sum must not depend on the GPU


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
    split = split_of(block)
    if split.num_edges == 0:
        return
    with_features = scoring.edge_weight is not None
    backward = _Backward(block, inputs, result, grads, scoring)
    for rows in pieces(block):
        if rows[0] < rows[1]:
            backward.by_destination(block, (grads.zr,), rows, False)
            add_hubs(split.hubs(rows), backward.by_destination, (grads.zr,))
    turned = transposed(block, inputs.zr.shape[0], with_features=with_features)
    for rows in pieces(turned):
        if rows[0] < rows[1]:
            backward.by_source(turned, (grads.zl,), rows, False)
            add_hubs(split_of(turned).hubs(rows), backward.by_source, (grads.zl,))


@dataclass(frozen=True)
class _Backward:
    """The two backward passes over a block's edges, each adding to one end's gradient, `to[0]`."""

    block: Block
    inputs: Projections
    result: ResultGradient
    grads: GATv2Gradients
    scoring: Scoring

    @cached_property
    def _wide(self) -> tuple[Tensor, ...]:
        return (*_read_wide(self.inputs, self.scoring), self.result.g)

    @property
    def _known(self) -> tuple[np.generic, ...]:
        """Arguments of both kernels: the inputs of forward, and the gradient of its output."""
        return (
            *matrices(self.inputs.zl, self.inputs.zr),
            pointer(self._wide[2]),
            *matrices(self.result.g, self.result.lse, self.result.d),
        )

    def _kernel(self, to: Tensor) -> Kernel:
        return Kernel.of(self.inputs.att.shape[0], (*self._wide, to))

    def by_destination(self, part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        """Add the gradients of `zr`, and of the weights, which all rows share."""
        kernel = self._kernel(to[0])
        weight = None if self.scoring.edge_weight is None else self.grads.edge_weight
        blocks = min(-(-(piece[1] - piece[0]) * WARP // THREADS), _MOST_BLOCKS)
        sums = _WarpSums.of(kernel, blocks, self.grads.att, weight)
        kernel.launch(
            "gatv2_backward_right",
            part,
            piece,
            (
                *self._known,
                *matrix(to[0]),
                pointer(sums.att),
                pointer(sums.matrix),
                *edge_term(self.block, self.scoring),
                *edge_dropout(self.scoring.dropout, self.inputs.zl, reverse=False),
            ),
            self.scoring,
            partial=partial,
            keeps=False,
            source="gatv2_backward",
            blocks=(blocks, kernel.shape.tiles),
        )
        sums.add_to(self.grads.att, weight)

    def by_source(self, part: Block, to: tuple[Tensor], piece: Rows, partial: bool) -> None:
        """Add the gradients of `zl`."""
        self._kernel(to[0]).launch(
            "gatv2_backward_left",
            part,
            piece,
            (
                *self._known,
                *matrix(to[0]),
                *edge_term(part, self.scoring),
                *edge_dropout(self.scoring.dropout, self.inputs.zl, reverse=True),
            ),
            self.scoring,
            partial=partial,
            keeps=False,
            source="gatv2_backward",
        )


def _read_wide(inputs: Projections, scoring: Scoring) -> tuple[Tensor, ...]:
    """Return zl, zr, att in the accumulation dtype, and the edge weight: all with vector loads."""
    att = inputs.att.detach().to(sum_type(inputs.zl.dtype)).contiguous()
    weight = () if scoring.edge_weight is None else (scoring.edge_weight,)
    return (inputs.zl, inputs.zr, att, *weight)


@dataclass(frozen=True)
class _WarpSums:
    """A separate sum for each warp, or group of lanes, to be added up in a fixed order.

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
