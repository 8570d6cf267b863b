"""GATv2 attention over the edges of a block."""

from __future__ import annotations

from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.attention import (
    GATv2Gradients,
    Projections,
    ResultGradient,
    RunningSoftmax,
    Scoring,
)
from hpcgnn.kernels.backend import Pieces, Rows, backend
from hpcgnn.kernels.block import Block


def gatv2_forward(
    block: Block,
    inputs: Projections,
    softmax: RunningSoftmax,
    scoring: Scoring,
    *,
    rows: Rows | None = None,
) -> None:
    """As `gat_forward`, with score <att, leaky_relu(zl[j] + zr[i] (+ features @ edge_weight))>.

    Args:
        inputs: `zl` of `block.num_columns` rows, `zr` of local rows.
        softmax: of local rows, updated.
    """
    _check(block, inputs, scoring)
    zl, heads = inputs.zl, inputs.att.shape[0]
    checks.running_softmax(softmax, like=zl, rows=checks.num_local_rows(block), heads=heads)
    backend(zl.device).gatv2_forward(block, inputs, softmax, scoring, checks.row_range(block, rows))


def gatv2_backward(
    block: Block,
    inputs: Projections,
    result: ResultGradient,
    grads: GATv2Gradients,
    scoring: Scoring,
    *,
    pieces: Pieces | None = None,
) -> None:
    """Gradients of the attention, computed by the owner of the destinations.

    One pass goes over the block's rows, another over its transpose, which is made once and kept as
    long as the block lives.

    Args:
        inputs, scoring: as in forward.
        result: of local rows.
        pieces: called with the block and with its transpose, the rows of each to work on one after
            the other, all in all every one of them once; what it does between them is the caller's.
    """
    _check(block, inputs, scoring)
    zl, heads = inputs.zl, inputs.att.shape[0]
    local, width, dtype = checks.num_local_rows(block), zl.shape[1], checks.sum_type(zl.dtype)
    for name, scalars in (("lse", result.lse), ("d", result.d)):
        checks.matrix(name, scalars, like=zl, rows=local, width=heads, dtype=dtype)
    checks.matrix("g", result.g, like=zl, rows=local, width=width)
    checks.matrix("grad_zr", grads.zr, like=zl, rows=local, width=width, dtype=dtype)
    columns = block.num_columns
    checks.matrix("grad_zl", grads.zl, like=zl, rows=columns, width=width, dtype=dtype)
    _contiguous("grad_att", grads.att, inputs.att)
    if grads.edge_weight is not None:
        _contiguous("grad_edge_weight", grads.edge_weight, scoring.edge_weight)
    backend(zl.device).gatv2_backward(block, inputs, result, grads, scoring, pieces or _all_rows)


def _all_rows(block: Block) -> list[Rows]:
    return [(0, block.num_rows)]


def _contiguous(name: str, tensor: Tensor, like: Tensor | None) -> None:
    if like is None or tensor.shape != like.shape or not tensor.is_contiguous():
        shape = None if like is None else tuple(like.shape)
        raise InputError(
            f"kernels: {name} must be contiguous with shape {shape}", value=tuple(tensor.shape)
        )


def _check(block: Block, inputs: Projections, scoring: Scoring) -> None:
    zl, zr, att = inputs.zl, inputs.zr, inputs.att
    checks.attention(block, zl, att.shape[0], scoring.dropout)
    local, width = checks.num_local_rows(block), zl.shape[1]
    checks.vector_of_ids(scoring.dropout, sources=block.num_columns, destinations=local)
    checks.matrix("zl", zl, like=zl, rows=block.num_columns, width=width)
    checks.matrix("zr", zr, like=zl, rows=local, width=width)
    channels, wide = width // att.shape[0], checks.sum_type(zl.dtype)
    checks.matrix("att", att, like=zl, rows=0, width=channels, dtype=att.dtype)
    if att.dtype not in (zl.dtype, wide) or not att.is_contiguous():
        raise InputError(
            f"kernels: att must be contiguous and {zl.dtype}",
            value=f"{att.dtype}, strides {att.stride()}",
        )
    weight = scoring.edge_weight
    if weight is not None:
        depth = checks.feature_width(block)
        checks.matrix("edge_weight", weight, like=zl, rows=depth, width=width, dtype=wide)
