"""GAT attention over the edges of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import backend
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.masks import EdgeDropout


def gat_forward(
    block: Block,
    z_MK: Tensor,
    s_MH: Tensor,
    t_NH: Tensor,
    row_max_NH: Tensor,
    row_sum_NH: Tensor,
    out_NK: Tensor,
    *,
    slope: float,
    dropout: EdgeDropout | None = None,
    edge_vector: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> None:
    """Softmax-weighted sum over edges j -> i, head by head, for one block after the other.

    With l = s[j] + t[i] (+ <edge_vector, features of the edge>), u = leaky_relu(l):
    top becomes the largest u so far, total the sum of exp(u - top) and out the sum of
    exp(u - top) * z[j]. After the last block out / total is the attention and
    top + log(total) the `lse` that backward needs.

    Args:
        z_MK: `[block.num_columns, heads * channels]`, a head's channels side by side.
        s_MH: `[block.num_columns, heads]`; t_NH: `[local rows, heads]`.
        row_max_NH, row_sum_NH: `[local rows, heads]`; out_NK: `[local rows, heads * channels]`;
            updated; start them at -inf, 0 and 0. Rows without edges stay as they are.
        slope: of the leaky rectifier.
        dropout: an edge's part of `out`, not of `total`, is times mask / (1 - p).
        edge_vector: `[heads, D]` for edge features of width D.
    """
    heads, local = s_MH.shape[-1], checks.num_local_rows(block)
    checks.attention(block, z_MK, heads, dropout, edge_vector)
    checks.vector_of_ids(dropout, sources=block.num_columns, destinations=local)
    checks.matrix("z", z_MK, like=z_MK, rows=block.num_columns, width=z_MK.shape[1])
    dtype = checks.sum_type(z_MK.dtype)
    checks.matrix("s", s_MH, like=z_MK, rows=block.num_columns, width=heads, dtype=dtype)
    for name, tensor in (("t", t_NH), ("top", row_max_NH), ("total", row_sum_NH)):
        checks.matrix(name, tensor, like=z_MK, rows=local, width=heads, dtype=dtype)
    checks.matrix("out", out_NK, like=z_MK, rows=local, width=z_MK.shape[1], dtype=dtype)
    backend(z_MK.device).gat_forward(
        block,
        *(z_MK, s_MH, t_NH, row_max_NH, row_sum_NH, out_NK),
        *(slope, dropout, edge_vector),
        checks.row_range(block, rows),
    )


def gat_backward(
    block: Block,
    g_MK: Tensor,
    t_MH: Tensor,
    lse_MH: Tensor,
    d_MH: Tensor,
    z_NK: Tensor,
    s_NH: Tensor,
    grad_z_NK: Tensor,
    grad_s_NH: Tensor,
    grad_t_MH: Tensor | None,
    *,
    slope: float,
    dropout: EdgeDropout | None = None,
    edge_vector: Tensor | None = None,
    grad_edge_vector: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> None:
    """Gradients of the attention, computed by the owner of the sources.

    With a = exp(u - lse[i]) and the dropout's mask m / (1 - p), for every edge j -> i:
    grad_z[j] += a m g[i]; dl = (a m <g[i], z[j]> - a d[i]) * (1 if l > 0 else slope);
    grad_s[j] += dl; grad_t[i] += dl; grad_edge_vector += dl * features of the edge.

    Args:
        block: of the reversed graph: rows are sources j, columns are destinations i.
        g_MK: `[block.num_columns, heads * channels]`, gradient of the attention's result.
        t_MH, lse_MH, d_MH: `[block.num_columns, heads]`; d = <g, result>, head by head.
        z_NK, s_NH: as in forward, of the local rows.
        grad_z_NK, grad_s_NH, grad_t_MH: like z, s and t, added to; grad_t may be None, or float64,
            which saves a copy.
        dropout: as in forward; `source_ids` are now those of the local rows.
        grad_edge_vector: `[heads, D]`, added to.
    """
    heads, local = s_NH.shape[-1], checks.num_local_rows(block)
    checks.attention(block, z_NK, heads, dropout, edge_vector)
    checks.vector_of_ids(dropout, sources=local, destinations=block.num_columns)
    columns, width, dtype = block.num_columns, z_NK.shape[1], checks.sum_type(z_NK.dtype)
    checks.matrix("g", g_MK, like=z_NK, rows=columns, width=width)
    for name, tensor in (("t", t_MH), ("lse", lse_MH), ("d", d_MH)):
        checks.matrix(name, tensor, like=z_NK, rows=columns, width=heads, dtype=dtype)
    if grad_t_MH is not None:
        wide = torch.float64 if grad_t_MH.dtype == torch.float64 else dtype
        checks.matrix("grad_t", grad_t_MH, like=z_NK, rows=columns, width=heads, dtype=wide)
    checks.matrix("z", z_NK, like=z_NK, rows=local, width=width)
    checks.matrix("grad_z", grad_z_NK, like=z_NK, rows=local, width=width, dtype=dtype)
    for name, tensor in (("s", s_NH), ("grad_s", grad_s_NH)):
        checks.matrix(name, tensor, like=z_NK, rows=local, width=heads, dtype=dtype)
    if grad_edge_vector is not None:
        checks.attention(block, z_NK, heads, dropout, grad_edge_vector)
    backend(z_NK.device).gat_backward(
        block,
        *(g_MK, t_MH, lse_MH, d_MH, z_NK, s_NH),
        *(grad_z_NK, grad_s_NH, grad_t_MH),
        *(slope, dropout, edge_vector, grad_edge_vector),
        checks.row_range(block, rows),
    )
