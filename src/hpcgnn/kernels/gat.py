"""GAT attention over the edges of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.kernels import checks
from hpcgnn.kernels.attention import (
    Destinations,
    GATGradients,
    RunningSoftmax,
    Scoring,
    Sources,
)
from hpcgnn.kernels.backend import Rows, backend
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
    """Softmax-weighted sum over edges j -> i, head by head, for one block after the other.

    The score is leaky_relu(l) with l = s[j] + t[i] (+ <edge_weight, features of the edge>). After
    the last block out / row_sum is the attention and row_max + log(row_sum) the `lse` that
    backward needs. Rows without edges stay as they are.

    Args:
        sources: of `block.num_columns` rows.
        t_NH: `[local rows, H]`, scores of the destinations.
        softmax: of local rows, updated.
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
    """Gradients of the attention, computed by the owner of the sources.

    With a = exp(score - lse[i]) and the dropout's mask m / (1 - p), for every edge j -> i:
    grad z[j] += a m g[i]; dl = (a m <g[i], z[j]> - a d[i]) * (1 if l > 0 else slope);
    grad s[j] += dl; grad t[i] += dl; grad edge_weight += dl * features of the edge.

    Args:
        block: of the reversed graph: rows are sources j, columns are destinations i.
        destinations: of `block.num_columns` rows.
        sources: as in forward, of the local rows.
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
    backend(z.device).gat_backward(
        block, destinations, sources, grads, scoring, checks.row_range(block, rows)
    )


def _check(block: Block, z: Tensor, heads: int, scoring: Scoring) -> None:
    checks.attention(block, z, heads, scoring.dropout)
    if scoring.edge_weight is not None:
        _check_edge_weight(block, z, heads, scoring.edge_weight)


def _check_edge_weight(block: Block, z: Tensor, heads: int, weight: Tensor) -> None:
    depth, dtype = checks.feature_width(block), checks.sum_type(z.dtype)
    checks.matrix("edge_weight", weight, like=z, rows=heads, width=depth, dtype=dtype)
