"""The end of a softmax that ran on over blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def normalised(
    top_NH: Tensor, total_NH: Tensor, out_NK: Tensor, bias_K: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of each node and head; without in-edges the bias alone and 0.

    Args:
        top_NH, total_NH: largest score, and sum of exponentials relative to it.
        out_NK: sum weighted by these exponentials, `[n, heads * channels]`; becomes the output.
    """
    none = total_NH == 0
    total_NH = total_NH.masked_fill(none, 1.0)
    out_NHC = out_NK.view(*total_NH.shape, out_NK.shape[1] // total_NH.shape[1])
    if bias_K is None:
        out_NHC.div_(total_NH[:, :, None])
    else:
        bias_HC = bias_K.to(out_NK.dtype).view(out_NHC.shape[1:])
        torch.addcdiv(bias_HC, out_NHC, total_NH[:, :, None], out=out_NHC)
    return out_NK, top_NH.masked_fill(none, 0.0) + total_NH.log()


def bias_gradient(g_NK: Tensor, bias_K: Tensor | None) -> Tensor | None:
    """`sum_n g[n]` in the bias's type."""
    return None if bias_K is None else g_NK.sum(dim=0, dtype=bias_K.dtype)
