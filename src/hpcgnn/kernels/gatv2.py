"""GATv2 attention: the Python face of its kernels, see the package."""

from __future__ import annotations

from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import backend
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.masks import EdgeDropout


def gatv2_forward(
    block: Block,
    zl_MK: Tensor,
    zr_NK: Tensor,
    att_HC: Tensor,
    row_max_NH: Tensor,
    row_sum_NH: Tensor,
    out_NK: Tensor,
    *,
    slope: float,
    dropout: EdgeDropout | None = None,
    edge_matrix: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> None:
    """As `gat_forward`, with u = <att, leaky_relu(zl[j] + zr[i] (+ features @ matrix))>.

    Args:
        zl_MK: `[block.num_columns, heads * channels]`, of the sources; also what is summed.
        zr_NK: `[local rows, heads * channels]`, of the destinations.
        att_HC: `[heads, channels]`, contiguous.
        row_max_NH, row_sum_NH, out_NK: updated; start them at -inf, 0 and 0.
        edge_matrix: `[D, heads * channels]` for edge features of width D.
    """
    local, width = checks.num_local_rows(block), zl_MK.shape[-1]
    heads, dtype = att_HC.shape[0], checks.sum_type(zl_MK.dtype)
    _check(block, zl_MK, zr_NK, att_HC, dropout, edge_matrix)
    for name, tensor in (("top", row_max_NH), ("total", row_sum_NH)):
        checks.matrix(name, tensor, like=zl_MK, rows=local, width=heads, dtype=dtype)
    checks.matrix("out", out_NK, like=zl_MK, rows=local, width=width, dtype=dtype)
    edge_term = {} if edge_matrix is None else {"edge_matrix": edge_matrix}
    backend(zl_MK.device).gatv2_forward(
        block,
        *(zl_MK, zr_NK, att_HC, row_max_NH, row_sum_NH, out_NK),
        *(slope, dropout, checks.row_range(block, rows)),
        **edge_term,
    )


def gatv2_backward(
    block: Block,
    zl_MK: Tensor,
    zr_NK: Tensor,
    att_HC: Tensor,
    g_NK: Tensor,
    lse_NH: Tensor,
    d_NH: Tensor,
    grad_zl_MK: Tensor,
    grad_zr_NK: Tensor,
    grad_att_HC: Tensor,
    *,
    slope: float,
    dropout: EdgeDropout | None = None,
    edge_matrix: Tensor | None = None,
    grad_edge_matrix: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> None:
    """Gradients of the attention, computed by the owner of the destinations; all are added to.

    One pass goes over the block's rows, another over its transpose, which is made for these rows
    (for all of a block's rows it is made once and kept as long as the block lives).

    Args:
        g_NK: `[local rows, heads * channels]`, gradient of the attention's result.
        lse_NH, d_NH: `[local rows, heads]`; d = <g, result>, head by head.
        grad_zl_MK, grad_zr_NK, grad_att_HC: like zl, zr and att; grad_att contiguous.
        grad_edge_matrix: `[D, heads * channels]`, contiguous.
    """
    local, width = checks.num_local_rows(block), zl_MK.shape[-1]
    heads, dtype = att_HC.shape[0], checks.sum_type(zl_MK.dtype)
    _check(block, zl_MK, zr_NK, att_HC, dropout, edge_matrix)
    for name, tensor in (("lse", lse_NH), ("d", d_NH)):
        checks.matrix(name, tensor, like=zl_MK, rows=local, width=heads, dtype=dtype)
    checks.matrix("g", g_NK, like=zl_MK, rows=local, width=width)
    checks.matrix("grad_zr", grad_zr_NK, like=zl_MK, rows=local, width=width, dtype=dtype)
    columns = block.num_columns
    checks.matrix("grad_zl", grad_zl_MK, like=zl_MK, rows=columns, width=width, dtype=dtype)
    _contiguous("grad_att", grad_att_HC, att_HC)
    edge_term = {}
    if edge_matrix is not None:
        edge_term = {"edge_matrix": edge_matrix, "grad_edge_matrix": grad_edge_matrix}
    if grad_edge_matrix is not None:
        _contiguous("grad_edge_matrix", grad_edge_matrix, edge_matrix)
    backend(zl_MK.device).gatv2_backward(
        block,
        *(zl_MK, zr_NK, att_HC, g_NK, lse_NH, d_NH, grad_zl_MK, grad_zr_NK, grad_att_HC),
        *(slope, dropout, checks.row_range(block, rows)),
        **edge_term,
    )


def _contiguous(name: str, tensor: Tensor, like: Tensor | None) -> None:
    if like is None or tensor.shape != like.shape or not tensor.is_contiguous():
        shape = None if like is None else tuple(like.shape)
        raise InputError(
            f"kernels: {name} must be contiguous with shape {shape}", value=tuple(tensor.shape)
        )


def _check(
    block: Block,
    zl: Tensor,
    zr: Tensor,
    att: Tensor,
    dropout: EdgeDropout | None,
    edge_matrix: Tensor | None,
) -> None:
    checks.attention(block, zl, att.shape[0], dropout, None)
    local, width = checks.num_local_rows(block), zl.shape[1]
    checks.vector_of_ids(dropout, sources=block.num_columns, destinations=local)
    checks.matrix("zl", zl, like=zl, rows=block.num_columns, width=width)
    checks.matrix("zr", zr, like=zl, rows=local, width=width)
    channels = width // att.shape[0]
    checks.matrix("att", att, like=zl, rows=0, width=channels, dtype=att.dtype)
    if att.dtype not in (zl.dtype, checks.sum_type(zl.dtype)) or not att.is_contiguous():
        raise InputError(
            f"kernels: att must be contiguous and {zl.dtype}",
            value=f"{att.dtype}, strides {att.stride()}",
        )
    if edge_matrix is None:
        return
    if block.features is None:
        raise InputError("kernels: an edge matrix needs a block with edge features")
    rows, dtype = block.features.shape[1], checks.sum_type(zl.dtype)
    checks.matrix("edge_matrix", edge_matrix, like=zl, rows=rows, width=width, dtype=dtype)
