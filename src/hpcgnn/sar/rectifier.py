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

    def apply(self, x_NF: Tensor, out_NF: Tensor, passed: Tensor | None = None) -> None:
        """`out`, which may be `x` itself, becomes y; `passed`: of `kernels.new_passed`."""
        seed, epoch, layer = self.key
        kernels.dropout_nodes(
            x_NF,
            out_NF,
            self.ids,
            p=self.p,
            seed=seed,
            epoch=epoch,
            layer=layer,
            relu=True,
            passed=passed,
        )

    def gradient(self, y_NF: Tensor, g_NF: Tensor) -> Tensor:
        """Of x, from that of y: a new `[n, F]`."""
        return self._gradient(g_NF, y_NF=y_NF)

    def gradient_of_passed(self, passed: Tensor, g_NF: Tensor) -> Tensor:
        """The same from what `apply` wrote in place of y."""
        return self._gradient(g_NF, passed=passed)

    def _gradient(self, g_NF: Tensor, **known: Tensor) -> Tensor:
        seed, epoch, layer = self.key
        g_NF = g_NF if g_NF.stride(-1) == 1 else g_NF.contiguous()
        grad_NF = torch.empty_like(g_NF, memory_format=torch.contiguous_format)
        kernels.dropout_nodes_backward(
            g_NF, grad_NF, self.ids, p=self.p, seed=seed, epoch=epoch, layer=layer, **known
        )
        return grad_NF
