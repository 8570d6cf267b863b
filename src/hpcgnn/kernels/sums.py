"""Sums and extremes over the edges of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.kernels import checks
from hpcgnn.kernels.backend import backend
from hpcgnn.kernels.block import Block


def spmm(
    block: Block,
    x_MF: Tensor,
    out_NF: Tensor,
    *,
    rows: tuple[int, int] | None = None,
    adds: bool = True,
) -> None:
    """out[row] += sum over the row's edges e of weight_e * x[column_e] (weight 1 without weights).

    Args:
        x_MF: `[block.num_columns, F]`.
        out_NF: `[local rows, F]`, added to.
        adds: whether `out` counts; else the block's rows of it are overwritten and never read.
    """
    width = x_MF.shape[-1]
    checks.real("x", x_MF)
    checks.block_on(block, x_MF.device)
    checks.matrix("x", x_MF, like=x_MF, rows=block.num_columns, width=width)
    checks.added_to("out", out_NF, like=x_MF, rows=checks.num_local_rows(block), width=width)
    backend(x_MF.device).spmm(block, x_MF, out_NF, checks.row_range(block, rows), adds)


def spmm_max(
    block: Block,
    x_MF: Tensor,
    best_NF: Tensor,
    ties_NF: Tensor,
    *,
    sign: int = 1,
    rows: tuple[int, int] | None = None,
) -> None:
    """Running maximum over edges (minimum for sign=-1) and the number of edges that attain it.

    Args:
        x_MF: `[block.num_columns, F]`.
        best_NF: `[local rows, F]`, updated; start it at -inf (+inf for a minimum).
        ties_NF: int32 `[local rows, F]`, updated; start it at 0.
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
    """grad[j] += sum over the row's edges to i of share[i] where x[j] == best[i].

    Args:
        block: of the reversed graph: rows are sources j, columns are destinations i.
        best_MF: `[block.num_columns, F]`, the maxima (or minima).
        share_MF: `[block.num_columns, F]`, the gradient of `best` divided by the ties.
        x_NF: `[local rows, F]`, what the maximum was taken of.
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
