"""Sums and extrema over the edges of a block; packing, adding and multiplying message rows."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import Parts, backend
from hpcgnn.kernels.block import Block, RowScale


class ThreadSums:
    """A separate sum for each thread, so that the result doesn't depend on the threads' order.

    `parts` is passed to all calls that add to the same sum, and `add_up` adds the result to
    `total`: the cost of threads x rows x columns is paid once, not in every call.

    Args:
        total: float64 `[rows, columns]`, added to.
    """

    def __init__(self, total: Tensor) -> None:
        self.total = total
        count = torch.get_num_threads() if total.device.type == "cpu" else 1
        self.parts = total[None] if count == 1 else total.new_zeros(count, *total.shape)

    def add_up(self) -> None:
        if len(self.parts) > 1:
            for part in self.parts[1:]:
                self.parts[0] += part
            self.total += self.parts[0]


def spmm(
    block: Block,
    x_MF: Tensor,
    out_NF: Tensor,
    *,
    rows: tuple[int, int] | None = None,
    adds: bool = True,
    scale_M: Tensor | None = None,
    after: RowScale | None = None,
) -> None:
    """Compute out[row] += the sum over the row's edges e of weight_e * x[column_e].

    The weight is 1 in a block without weights.

    Args:
        x_MF: `[block.num_columns, F]`; may be bfloat16 on a CPU too, with `out` in float32.
        out_NF: `[local rows, F]`, added to.
        adds: whether to add to `out`; otherwise the block's rows of it are overwritten unread.
        scale_M: `[block.num_columns]`, in the accumulation dtype: multiplies the rows of x,
            bitwise as if that had been done before.
        after: scaling of each sum, on a GPU only; its `loop_N` needs `adds=False` and local rows
            as columns.
    """
    width = x_MF.shape[-1]
    checks.gathered("x", x_MF)
    checks.block_on(block, x_MF.device)
    checks.matrix("x", x_MF, like=x_MF, rows=block.num_columns, width=width)
    checks.added_to("out", out_NF, like=x_MF, rows=checks.num_local_rows(block), width=width)
    wide = checks.sum_type(x_MF.dtype)
    checks.vector("scale", scale_M, wide, x_MF.device, block.num_columns)
    _check_after(block, x_MF, after, adds)
    piece = checks.row_range(block, rows)
    backend(x_MF.device).spmm(block, x_MF, out_NF, piece, adds, scale_M, after)


def _check_after(block: Block, x_MF: Tensor, after: RowScale | None, adds: bool) -> None:
    if after is None:
        return
    for name, vector_N in (("after.scale", after.scale_N), ("after.loop", after.loop_N)):
        wide, least = checks.sum_type(x_MF.dtype), checks.num_local_rows(block)
        checks.vector(name, vector_N, wide, x_MF.device, least)
    square = block.num_columns >= checks.num_local_rows(block)
    if after.loop_N is not None and (adds or not square):
        raise InputError("kernels: after.loop needs adds=False and local rows as columns")


def spmm_max(
    block: Block,
    x_MF: Tensor,
    best_NF: Tensor,
    ties_NF: Tensor,
    *,
    sign: int = 1,
    rows: tuple[int, int] | None = None,
) -> None:
    """Update the running maximum over edges (minimum for sign=-1) and the number of its ties.

    Args:
        x_MF: `[block.num_columns, F]`.
        best_NF: `[local rows, F]`, updated; start it at -inf (+inf for a minimum).
        ties_NF: int32 `[local rows, F]`, the edges that attain `best`, updated; start it at 0.
    """
    width, local = x_MF.shape[-1], checks.num_local_rows(block)
    checks.real("x", x_MF)
    checks.block_on(block, x_MF.device)
    checks.matrix("x", x_MF, like=x_MF, rows=block.num_columns, width=width)
    checks.matrix("best", best_NF, like=x_MF, rows=local, width=width)
    checks.matrix("ties", ties_NF, like=x_MF, rows=local, width=width, dtype=torch.int32)
    backend(x_MF.device).spmm_max(
        block, x_MF, best_NF, ties_NF, sign, checks.row_range(block, rows)
    )


def spmm_max_backward(
    block: Block,
    best_MF: Tensor,
    share_MF: Tensor,
    x_NF: Tensor,
    grad_NF: Tensor,
    *,
    rows: tuple[int, int] | None = None,
) -> None:
    """Compute grad[j] += the sum over the row's edges to i of share[i] where x[j] == best[i].

    Args:
        block: of the reversed graph: rows are sources j, columns are destinations i.
        best_MF: `[block.num_columns, F]`, the maxima (or minima).
        share_MF: `[block.num_columns, F]`, the gradient of `best` divided by the ties.
        x_NF: `[local rows, F]`, the values that the maximum was taken over.
        grad_NF: `[local rows, F]`, added to.
    """
    width, local = x_NF.shape[-1], checks.num_local_rows(block)
    checks.real("x", x_NF)
    checks.block_on(block, x_NF.device)
    checks.matrix("x", x_NF, like=x_NF, rows=local, width=width)
    checks.added_to("grad", grad_NF, like=x_NF, rows=local, width=width)
    checks.matrix("best", best_MF, like=x_NF, rows=block.num_columns, width=width)
    checks.matrix("share", share_MF, like=x_NF, rows=block.num_columns, width=width)
    backend(x_NF.device).spmm_max_backward(
        block, best_MF, share_MF, x_NF, grad_NF, checks.row_range(block, rows)
    )


def pack_rows(x_NF: Tensor, rows_M: Tensor, out_MF: Tensor) -> None:
    """Set out[i] = x[rows[i]], the rows of a message, rounded to the dtype of `out`.

    Args:
        rows_M: int32 `[M]`.
        out_MF: `[M, F]`, overwritten; may be float16 or bfloat16, on a CPU too.
    """
    _check_rows("out", out_MF, rows_M, x_NF)
    backend(x_NF.device).pack_rows(x_NF, rows_M, out_MF)


def pack_parts(parts: Parts, rows_M: Tensor) -> None:
    """Call `pack_rows` for each (x, out), which lie side by side in the rows of a message."""
    for x_NF, out_MF in parts:
        _check_rows("out", out_MF, rows_M, x_NF)
    if parts:
        backend(parts[0][0].device).pack_parts(parts, rows_M)


def add_rows(x_MF: Tensor, rows_M: Tensor, out_NF: Tensor) -> None:
    """Compute out[rows[i]] += x[i], adding a message's rows to the nodes' rows.

    Args:
        rows_M: int32 `[M]`, without duplicates.
        out_NF: `[n, F]`, in the accumulation dtype.
    """
    _check_rows("x", x_MF, rows_M, out_NF)
    backend(x_MF.device).add_rows(x_MF, rows_M, out_NF)


def _check_rows(name: str, message_MF: Tensor, rows_M: Tensor, nodes_NF: Tensor) -> None:
    width, count = nodes_NF.shape[1], rows_M.shape[0]
    checks.vector("rows", rows_M, torch.int32, nodes_NF.device, count)
    checks.matrix(name, message_MF, like=nodes_NF, rows=count, width=width, dtype=message_MF.dtype)


def head_dots(
    a_NK: Tensor,
    b_NK: Tensor,
    out_NH: Tensor,
    *,
    minus_K: Tensor | None = None,
    grad_NK: Tensor | None = None,
    p: float = 0.0,
) -> None:
    """Set out[n, h] to the inner product of head h's channels in a[n] and b[n] - minus.

    Args:
        a_NK, b_NK: `[n, heads * channels]`, a head's channels side by side.
        out_NH: `[n, heads]`, overwritten.
        minus_K: `[heads * channels]` in the accumulation dtype; None: 0.
        grad_NK: like `a`, or `a` itself: overwritten with a / (1 - p) where b > 0, else 0, which is
            the gradient of `dropout_nodes` with relu=True and takes the place of a in the product.
            On a GPU only.
    """
    checks.real("a", a_NK)
    checks.probability(p)
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
    if grad_NK is not None:
        checks.matrix("grad", grad_NK, like=a_NK, rows=num_rows, width=width)
    backend(a_NK.device).head_dots(a_NK, b_NK, out_NH, minus_K, grad_NK, p)


def head_scores(z_NK: Tensor, source_HC: Tensor, target_HC: Tensor, out_NH: Tensor) -> None:
    """Set out[n, h] to <z[n, head h], source[h]>, and out[n, H + h] to that with target[h].

    Args:
        z_NK: `[n, H * C]`, a head's channels side by side.
        source_HC, target_HC: `[H, C]` in the accumulation dtype.
        out_NH: `[n, 2 H]` in the accumulation dtype, overwritten.
    """
    checks.real("z", z_NK)
    dtype, (heads, channels) = checks.sum_type(z_NK.dtype), source_HC.shape
    checks.matrix("z", z_NK, like=z_NK, rows=0, width=heads * channels)
    for name, vectors_HC in (("source", source_HC), ("target", target_HC)):
        checks.matrix(name, vectors_HC, like=z_NK, rows=heads, width=channels, dtype=dtype)
    checks.matrix("out", out_NH, like=z_NK, rows=len(z_NK), width=2 * heads, dtype=dtype)
    backend(z_NK.device).head_scores(z_NK, source_HC.contiguous(), target_HC.contiguous(), out_NH)
