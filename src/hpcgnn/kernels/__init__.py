"""The hot loops: one Python face for the C++ and the CUDA sources.

Every function adds to outputs it is given, so that blocks can arrive one after the other; with
`rows=(low, high)` it does only these rows of the block, so that the caller can make progress on
MPI between pieces. Matrices may have any row stride, but adjacent columns. All of a call's
tensors are on one device and of one type, float32 or float64; on a GPU what is gathered may also be
float16 or bfloat16, and what is summed is then float32. What does not fit raises InputError.
Results are bitwise the same in every run (on CPUs, with the same number of threads).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph import Block
from hpcgnn.kernels import checks
from hpcgnn.kernels.attention2 import attention2_backward, attention2_forward
from hpcgnn.kernels.backend import backend
from hpcgnn.kernels.dropout import Dropout, Stream
from hpcgnn.kernels.split import kept

__all__ = [
    "Dropout",
    "add_rows",
    "attention2_backward",
    "attention2_forward",
    "attention_backward",
    "attention_forward",
    "columns_between",
    "dropout_nodes",
    "dropout_nodes_backward",
    "head_dots",
    "pack_rows",
    "rows_between",
    "spmm",
    "spmm_max",
    "spmm_max_backward",
    "transpose",
]


def spmm(
    block: Block, x_HF: Tensor, out_NF: Tensor, *, rows: tuple[int, int] | None = None
) -> None:
    """out[row] += sum over the row's edges e of weight_e * x[column_e] (weight 1 without weights).

    Args:
        x_HF: `[block.num_columns, F]`.
        out_NF: `[local rows, F]`, added to.
    """
    width = x_HF.shape[-1]
    checks.real("x", x_HF)
    checks.block_on(block, x_HF.device)
    checks.matrix("x", x_HF, like=x_HF, rows=block.num_columns, width=width)
    checks.added_to("out", out_NF, like=x_HF, rows=checks.num_local_rows(block), width=width)
    backend(x_HF.device).spmm(block, x_HF, out_NF, checks.row_range(block, rows))


def spmm_max(
    block: Block,
    x_HF: Tensor,
    best_NF: Tensor,
    ties_NF: Tensor,
    *,
    sign: int = 1,
    rows: tuple[int, int] | None = None,
) -> None:
    """Running maximum over edges (minimum for sign=-1) and the number of edges that attain it.

    Args:
        x_HF: `[block.num_columns, F]`.
        best_NF: `[local rows, F]`, updated; start it at -inf (+inf for a minimum).
        ties_NF: int32 `[local rows, F]`, updated; start it at 0.
    """
    width, local = x_HF.shape[-1], checks.num_local_rows(block)
    checks.real("x", x_HF)
    checks.block_on(block, x_HF.device)
    checks.matrix("x", x_HF, like=x_HF, rows=block.num_columns, width=width)
    checks.matrix("best", best_NF, like=x_HF, rows=local, width=width)
    checks.matrix("ties", ties_NF, like=x_HF, rows=local, width=width, dtype=torch.int32)
    backend(x_HF.device).spmm_max(
        block, x_HF, best_NF, ties_NF, sign, checks.row_range(block, rows)
    )


def spmm_max_backward(
    block: Block,
    best_HF: Tensor,
    share_HF: Tensor,
    x_NF: Tensor,
    grad_NF: Tensor,
    *,
    rows: tuple[int, int] | None = None,
) -> None:
    """grad[j] += sum over the row's edges to i of share[i] where x[j] == best[i].

    Args:
        block: of the reversed graph: rows are sources j, columns are destinations i.
        best_HF: `[block.num_columns, F]`, the maxima (or minima).
        share_HF: `[block.num_columns, F]`, the gradient of `best` divided by the ties.
        x_NF: `[local rows, F]`, what the maximum was taken of.
        grad_NF: `[local rows, F]`, added to.
    """
    width, local = x_NF.shape[-1], checks.num_local_rows(block)
    checks.real("x", x_NF)
    checks.block_on(block, x_NF.device)
    checks.matrix("x", x_NF, like=x_NF, rows=local, width=width)
    checks.added_to("grad", grad_NF, like=x_NF, rows=local, width=width)
    checks.matrix("best", best_HF, like=x_NF, rows=block.num_columns, width=width)
    checks.matrix("share", share_HF, like=x_NF, rows=block.num_columns, width=width)
    backend(x_NF.device).spmm_max_backward(
        block, best_HF, share_HF, x_NF, grad_NF, checks.row_range(block, rows)
    )


def attention_forward(
    block: Block,
    z_HK: Tensor,
    s_HH: Tensor,
    t_NH: Tensor,
    top_NH: Tensor,
    total_NH: Tensor,
    out_NK: Tensor,
    *,
    slope: float,
    dropout: Dropout | None = None,
    edge_vector: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> None:
    """Softmax-weighted sum over edges j -> i, head by head, for one block after the other.

    With l = s[j] + t[i] (+ <edge_vector, features of the edge>), u = leaky_relu(l):
    top becomes the largest u so far, total the sum of exp(u - top) and out the sum of
    exp(u - top) * z[j]. After the last block out / total is the attention and
    top + log(total) the `lse` that backward needs.

    Args:
        z_HK: `[block.num_columns, heads * channels]`, a head's channels side by side.
        s_HH: `[block.num_columns, heads]`; t_NH: `[local rows, heads]`.
        top_NH, total_NH, out_NK: `[local rows, heads]` twice and `[local rows, heads * channels]`,
            updated; start them at -inf, 0 and 0. Rows without edges stay as they are.
        slope: of the leaky rectifier.
        dropout: an edge's part of `out`, not of `total`, is times mask / (1 - p).
        edge_vector: `[heads, D]` for edge features of width D.
    """
    heads, local = s_HH.shape[-1], checks.num_local_rows(block)
    checks.attention(block, z_HK, heads, dropout, edge_vector)
    checks.vector_of_ids(dropout, sources=block.num_columns, destinations=local)
    checks.matrix("z", z_HK, like=z_HK, rows=block.num_columns, width=z_HK.shape[1])
    dtype = checks.sum_type(z_HK.dtype)
    checks.matrix("s", s_HH, like=z_HK, rows=block.num_columns, width=heads, dtype=dtype)
    for name, tensor in (("t", t_NH), ("top", top_NH), ("total", total_NH)):
        checks.matrix(name, tensor, like=z_HK, rows=local, width=heads, dtype=dtype)
    checks.matrix("out", out_NK, like=z_HK, rows=local, width=z_HK.shape[1], dtype=dtype)
    backend(z_HK.device).attention_forward(
        block,
        *(z_HK, s_HH, t_NH, top_NH, total_NH, out_NK),
        *(slope, dropout, edge_vector),
        checks.row_range(block, rows),
    )


def attention_backward(
    block: Block,
    g_HK: Tensor,
    t_HH: Tensor,
    lse_HH: Tensor,
    d_HH: Tensor,
    z_NK: Tensor,
    s_NH: Tensor,
    grad_z_NK: Tensor,
    grad_s_NH: Tensor,
    grad_t_HH: Tensor | None,
    *,
    slope: float,
    dropout: Dropout | None = None,
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
        g_HK: `[block.num_columns, heads * channels]`, gradient of the attention's result.
        t_HH, lse_HH, d_HH: `[block.num_columns, heads]`; d = <g, result>, head by head.
        z_NK, s_NH: as in forward, of the local rows.
        grad_z_NK, grad_s_NH, grad_t_HH: like z, s and t, added to; grad_t may be None, or float64,
            which saves a copy.
        dropout: as in forward; `source_ids` are now those of the local rows.
        grad_edge_vector: `[heads, D]`, added to.
    """
    heads, local = s_NH.shape[-1], checks.num_local_rows(block)
    checks.attention(block, z_NK, heads, dropout, edge_vector)
    checks.vector_of_ids(dropout, sources=local, destinations=block.num_columns)
    columns, width, dtype = block.num_columns, z_NK.shape[1], checks.sum_type(z_NK.dtype)
    checks.matrix("g", g_HK, like=z_NK, rows=columns, width=width)
    for name, tensor in (("t", t_HH), ("lse", lse_HH), ("d", d_HH)):
        checks.matrix(name, tensor, like=z_NK, rows=columns, width=heads, dtype=dtype)
    if grad_t_HH is not None:
        wide = torch.float64 if grad_t_HH.dtype == torch.float64 else dtype
        checks.matrix("grad_t", grad_t_HH, like=z_NK, rows=columns, width=heads, dtype=wide)
    checks.matrix("z", z_NK, like=z_NK, rows=local, width=width)
    checks.matrix("grad_z", grad_z_NK, like=z_NK, rows=local, width=width, dtype=dtype)
    for name, tensor in (("s", s_NH), ("grad_s", grad_s_NH)):
        checks.matrix(name, tensor, like=z_NK, rows=local, width=heads, dtype=dtype)
    if grad_edge_vector is not None:
        checks.attention(block, z_NK, heads, dropout, grad_edge_vector)
    backend(z_NK.device).attention_backward(
        block,
        *(g_HK, t_HH, lse_HH, d_HH, z_NK, s_NH),
        *(grad_z_NK, grad_s_NH, grad_t_HH),
        *(slope, dropout, edge_vector, grad_edge_vector),
        checks.row_range(block, rows),
    )


def columns_between(block: Block, low: int, high: int) -> Block:
    """The same block restricted to columns `low .. high - 1`, sharing all edge arrays.

    Only the edge ranges of the rows are new; rows without an edge left stay, with none. On a GPU
    the result is kept as long as the block lives: to make it anew, the host waits for the GPU.
    """
    if low == 0 and high == block.num_columns:
        return block

    def cut() -> Block:
        first = block.column_offset + low
        begin, end = backend(block.device).between(block, first, first + high - low)
        return replace(block, num_columns=high - low, begin=begin, end=end, column_offset=first)

    return kept(block, f"columns {low} {high}", cut) if block.device.type == "cuda" else cut()


def rows_between(block: Block, low: int, high: int) -> Block:
    """Rows `low .. high - 1` of a block without a row list, renumbered from 0; kept on a GPU."""
    if low == 0 and high == block.num_rows:
        return block

    def cut() -> Block:
        return replace(block, begin=block.begin[low:high], end=block.end[low:high])

    return kept(block, f"rows {low} {high}", cut) if block.device.type == "cuda" else cut()


def transpose(block: Block, num_rows: int) -> Block:
    """The block compressed by column: its rows are the block's columns, and the other way round.

    Edges keep their order within a column and take weight, relation and features along.

    Args:
        num_rows: local rows of `block`, the number of columns of the result.
    """
    checks.block_on(block, block.device)
    if checks.num_local_rows(block) > num_rows:
        raise InputError("kernels: transpose needs num_rows above every row", value=num_rows)
    pointer, local_rows, order = backend(block.device).transpose(block)

    def carried(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[order]

    return replace(
        block,
        num_columns=num_rows,
        rows=None,
        begin=pointer[:-1],
        end=pointer[1:],
        columns=local_rows,
        column_offset=0,
        weight=carried(block.weight),
        relation=carried(block.relation),
        features=carried(block.features),
    )


def pack_rows(x_NF: Tensor, rows_R: Tensor, out_RF: Tensor) -> None:
    """out[i] = x[rows[i]], rounded to the type of `out`: a message's rows.

    Args:
        rows_R: int32 `[R]`.
        out_RF: `[R, F]`, overwritten; 16-bit numbers are welcome on a CPU too.
    """
    _check_rows("out", out_RF, rows_R, x_NF)
    backend(x_NF.device).pack_rows(x_NF, rows_R, out_RF)


def add_rows(x_RF: Tensor, rows_R: Tensor, out_NF: Tensor) -> None:
    """out[rows[i]] += x[i]: a message's rows where they belong.

    Args:
        rows_R: int32 `[R]`, no two the same.
        out_NF: `[n, F]`, in the type of sums.
    """
    _check_rows("x", x_RF, rows_R, out_NF)
    backend(x_RF.device).add_rows(x_RF, rows_R, out_NF)


def _check_rows(name: str, message_RF: Tensor, rows_R: Tensor, nodes_NF: Tensor) -> None:
    width, count = nodes_NF.shape[1], rows_R.shape[0]
    checks.vector("rows", rows_R, torch.int32, nodes_NF.device, count)
    checks.matrix(name, message_RF, like=nodes_NF, rows=count, width=width, dtype=message_RF.dtype)


def head_dots(a_NK: Tensor, b_NK: Tensor, out_NH: Tensor, *, minus_K: Tensor | None = None) -> None:
    """out[n, h] = the inner product of head h's channels in a[n] and b[n] - minus.

    Args:
        a_NK, b_NK: `[n, heads * channels]`, a head's channels side by side.
        out_NH: `[n, heads]`, overwritten.
        minus_K: `[heads * channels]` in the type of sums; 0 without.
    """
    checks.real("a", a_NK)
    heads = out_NH.shape[-1]
    if heads == 0 or a_NK.shape[-1] % heads:
        raise InputError("kernels: the width of a must be a multiple of the heads", value=heads)
    num_rows, width = a_NK.shape
    for name, tensor in (("a", a_NK), ("b", b_NK)):
        checks.matrix(name, tensor, like=a_NK, rows=num_rows, width=width)
    dtype = checks.sum_type(a_NK.dtype)
    checks.matrix("out", out_NH, like=a_NK, rows=num_rows, width=heads, dtype=dtype)
    if minus_K is not None:
        checks.matrix("minus", minus_K[None], like=a_NK, rows=1, width=width, dtype=dtype)
    backend(a_NK.device).head_dots(a_NK, b_NK, out_NH, minus_K)


def dropout_nodes(
    x_NF: Tensor,
    out_NF: Tensor,
    ids_N: Tensor,
    *,
    p: float,
    seed: int,
    epoch: int,
    layer: int,
    relu: bool = False,
) -> None:
    """out = mask * x / (1 - p), or mask * relu(x) / (1 - p); `out` may be `x` itself.

    An entry is dropped with probability p, decided by (seed, epoch, layer, id, column) alone.

    Args:
        x_NF, out_NF: `[n, F]`; `out` is overwritten.
        ids_N: int64 `[n]`, original node ids.
    """
    checks.real("x", x_NF)
    checks.probability(p)
    _same_shape("out", out_NF, x_NF)
    checks.vector("ids", ids_N, torch.int64, x_NF.device, x_NF.shape[0])
    stream = Stream.of(seed, epoch, layer)
    backend(x_NF.device).dropout_nodes(x_NF, out_NF, ids_N, p, stream, relu)


def dropout_nodes_backward(
    g_NF: Tensor,
    grad_NF: Tensor,
    ids_N: Tensor,
    *,
    p: float,
    seed: int,
    epoch: int,
    layer: int,
    y_NF: Tensor | None = None,
) -> None:
    """Gradient of `dropout_nodes`: grad from g; `grad` is overwritten and may be `g` itself.

    Args:
        y_NF: `[n, F]`, the output of `dropout_nodes` with relu=True, which alone says what passed:
            grad = g / (1 - p) where y > 0. None after relu=False: grad = mask * g / (1 - p).
    """
    if y_NF is None:
        dropout_nodes(g_NF, grad_NF, ids_N, p=p, seed=seed, epoch=epoch, layer=layer)
        return
    checks.real("g", g_NF)
    checks.probability(p)
    _same_shape("grad", grad_NF, g_NF)
    _same_shape("y", y_NF, g_NF)
    backend(g_NF.device).relu_dropout_backward(y_NF, g_NF, grad_NF, p)


def _same_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    if like.dim() != 2 or tensor.shape[0] != like.shape[0]:
        raise InputError(
            f"kernels: {name} must have shape {tuple(like.shape)}", value=tuple(tensor.shape)
        )
    checks.matrix(name, like, like=like, rows=0, width=like.shape[1])
    checks.matrix(name, tensor, like=like, rows=like.shape[0], width=like.shape[1])
