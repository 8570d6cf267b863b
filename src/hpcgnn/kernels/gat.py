"""GAT and GATv2 attention over the edges of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.attention import (
    Destinations,
    GATGradients,
    GATv2Gradients,
    Projections,
    ResultGradient,
    RunningSoftmax,
    Scoring,
    Sources,
)
from hpcgnn.kernels.backend import Pieces, Rows, backend
from hpcgnn.kernels.block import Block


def gat_forward(
    block: Block,
    sources: Sources,
    t_NH: Tensor,
    softmax: RunningSoftmax,
    scoring: Scoring,
    *,
    rows: Rows | None = None,
) -> None:
    """Add a block's edges j -> i to a softmax-weighted sum, head by head.

    The score is leaky_relu(l) with l = s[j] + t[i] (+ <edge_weight, features of the edge>). After
    the last block out / row_sum is the attention's output and row_max + log(row_sum) the `lse`
    that backward needs. Rows without edges are left as they are.

    Args:
        sources: with `block.num_columns` rows; z may be bfloat16, on a CPU too, summed in float32.
        t_NH: `[local rows, H]`, scores of the destinations.
        softmax: with local rows; updated.
    """
    z, heads = sources.z, sources.s.shape[-1]
    local, columns = checks.num_local_rows(block), block.num_columns
    _check(block, z, heads, scoring)
    checks.vector_of_ids(scoring.dropout, sources=columns, destinations=local)
    checks.matrix("z", z, like=z, rows=columns, width=z.shape[1])
    dtype = checks.sum_type(z.dtype)
    checks.matrix("s", sources.s, like=z, rows=columns, width=heads, dtype=dtype)
    checks.matrix("t", t_NH, like=z, rows=local, width=heads, dtype=dtype)
    checks.running_softmax(softmax, like=z, rows=local, heads=heads)
    if softmax.start is not None:
        checks.matrix("start", softmax.start, like=z, rows=local, width=z.shape[1])
        _check_whole(block, z)
    if softmax.self_loops:
        if takes_whole_blocks(z.device):
            raise InputError("kernels: self-loops in a softmax are only for a GPU")
        _check_self_loops(block, scoring)
    backend(z.device).gat_forward(
        block, sources, t_NH, softmax, scoring, checks.row_range(block, rows)
    )


def gat_backward(
    block: Block,
    destinations: Destinations,
    sources: Sources,
    grads: GATGradients,
    scoring: Scoring,
    *,
    rows: Rows | None = None,
) -> None:
    """Add the gradients of the attention, computed by the owner of the sources.

    With a = exp(score - lse[i]) and the dropout's mask m / (1 - p), for every edge j -> i:
    grad z[j] += a m g[i]; dl = (a m <g[i], z[j]> - a d[i]) * (1 if l > 0 else slope);
    grad s[j] += dl; grad t[i] += dl; grad edge_weight += dl * features of the edge.

    Args:
        block: of the reversed graph: rows are sources j, columns are destinations i.
        destinations: with `block.num_columns` rows; g has z's dtype.
        sources: as in forward, with local rows.
        scoring: as in forward; the dropout's `source_ids` are now those of the local rows.
    """
    z, heads = sources.z, sources.s.shape[-1]
    local, columns, width = checks.num_local_rows(block), block.num_columns, z.shape[-1]
    dtype = checks.sum_type(z.dtype)
    _check(block, z, heads, scoring)
    checks.vector_of_ids(scoring.dropout, sources=local, destinations=columns)
    checks.matrix("g", destinations.g, like=z, rows=columns, width=width)
    for name in ("t", "lse", "d"):
        scalars = getattr(destinations, name)
        checks.matrix(name, scalars, like=z, rows=columns, width=heads, dtype=dtype)
    if grads.t is not None:
        parts = grads.t if grads.t.dim() == 3 else grads.t[None]
        wide = torch.float64 if len(parts) > 1 or parts.dtype == torch.float64 else dtype
        checks.matrix("grad_t", parts[0], like=z, rows=columns, width=heads, dtype=wide)
    checks.matrix("z", z, like=z, rows=local, width=width)
    checks.matrix("grad_z", grads.z, like=z, rows=local, width=width, dtype=dtype)
    for name, scalars in (("s", sources.s), ("grad_s", grads.s)):
        checks.matrix(name, scalars, like=z, rows=local, width=heads, dtype=dtype)
    if grads.edge_weight is not None:
        _check_edge_weight(block, z, heads, grads.edge_weight)
    if grads.self_loops:
        _check_self_loops(block, scoring)
    if not grads.adds and not (grads.self_loops and not takes_whole_blocks(z.device)):
        _check_whole(block, z)
    backend(z.device).gat_backward(
        block, destinations, sources, grads, scoring, checks.row_range(block, rows)
    )


def takes_whole_blocks(device: torch.device) -> bool:
    """Return whether kernels take `start` and `adds=False` without self-loops, as on CPUs."""
    return backend(device).WHOLE_BLOCKS


def _check_whole(block: Block, z: Tensor) -> None:
    """Check that the block has all rows, some perhaps without edges, and is on a CPU."""
    if block.rows is not None or not takes_whole_blocks(z.device):
        raise InputError(
            "kernels: start, and adds=False without self-loops, need a block of all rows on a CPU"
        )


def _check_self_loops(block: Block, scoring: Scoring) -> None:
    whole = block.rows is None or not takes_whole_blocks(block.device)
    if (
        block.num_columns < checks.num_local_rows(block)
        or not whole
        or scoring.edge_weight is not None
    ):
        raise InputError("kernels: self-loops need local rows as columns, and no edge features")


def _check(block: Block, z: Tensor, heads: int, scoring: Scoring) -> None:
    checks.gathered("z", z)
    checks.attention(block, z, heads, scoring.dropout)
    if scoring.edge_weight is not None:
        _check_edge_weight(block, z, heads, scoring.edge_weight)


def _check_edge_weight(block: Block, z: Tensor, heads: int, weight: Tensor) -> None:
    depth, dtype = checks.feature_width(block), checks.sum_type(z.dtype)
    checks.matrix("edge_weight", weight, like=z, rows=heads, width=depth, dtype=dtype)


def gatv2_forward(
    block: Block,
    inputs: Projections,
    softmax: RunningSoftmax,
    scoring: Scoring,
    *,
    rows: Rows | None = None,
) -> None:
    """As `gat_forward`, with scores <att, leaky_relu(zl[j] + zr[i] (+ features @ edge_weight))>.

    Args:
        inputs: `zl` with `block.num_columns` rows, `zr` with local rows.
        softmax: with local rows; updated.
    """
    _check_gatv2(block, inputs, scoring)
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
    """Add the gradients of the attention, computed by the owner of the destinations.

    One pass goes over the block's rows, another over its transpose, which is made once and kept as
    long as the block lives.

    Args:
        inputs, scoring: as in forward.
        result: with local rows.
        pieces: called with the block and with its transpose; gives successive ranges of rows that
            cover each row once. The caller may do other work between them.
    """
    _check_gatv2(block, inputs, scoring)
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


def _check_gatv2(block: Block, inputs: Projections, scoring: Scoring) -> None:
    zl, zr, att = inputs.zl, inputs.zr, inputs.att
    checks.real("z", zl)
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
