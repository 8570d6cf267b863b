"""A ReLU and dropout by node ids, for functions that apply both to what they return, in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn import kernels


@dataclass(frozen=True)
class ReluDropout:
    """`y = mask * relu(x) / (1 - p)`: an entry of y is positive iff it passed the ReLU and stayed.

    So y alone says where gradients go, and there it says what x was: `(1 - p) * y`. Whoever keeps y
    for backward needs no x.

    Attributes:
        ids: int64 `[n]`, node ids, by which entries are dropped.
        key: seed, epoch and layer of the mask.
    """

    ids: Tensor
    p: float
    key: tuple[int, int, int]

    def apply(self, x_NF: Tensor, out_NF: Tensor) -> None:
        """`out`, which may be `x` itself, becomes y."""
        if self.p == 0:
            torch.clamp(x_NF, min=0, out=out_NF)
            return
        seed, epoch, layer = self.key
        kernels.dropout_nodes(
            x_NF, out_NF, self.ids, p=self.p, seed=seed, epoch=epoch, layer=layer, relu=True
        )

    def gradient(self, y_NF: Tensor, g_NF: Tensor) -> Tensor:
        """Of x, from that of y: a new `[n, F]`."""
        seed, epoch, layer = self.key
        grad_NF = torch.empty_like(y_NF, memory_format=torch.contiguous_format)
        kernels.dropout_nodes_backward(
            g_NF if g_NF.stride(-1) == 1 else g_NF.contiguous(),
            grad_NF,
            self.ids,
            p=self.p,
            seed=seed,
            epoch=epoch,
            layer=layer,
            y_NF=y_NF,
        )
        return grad_NF
