"""ReLU followed by dropout by node ids, for functions that apply both to their results in place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcgnn import kernels


@dataclass(frozen=True)
class ReluDropout:
    """`y = mask * relu(x) / (1 - p)`: an entry of y is positive iff it passed ReLU and dropout.

    Hence y alone determines where gradients are passed on, and x there: `(1 - p) * y`. A function
    that keeps y for backward doesn't need x.

    Attributes:
        ids: int64 `[n]`, node ids, which determine the entries that are dropped.
        p: probability of dropping an entry.
        key: seed, epoch and layer of the mask.
    """

    ids: Tensor
    p: float
    key: tuple[int, int, int]

    def of(self, rows: slice) -> ReluDropout:
        """Return the same for some of the rows."""
        return replace(self, ids=self.ids[rows])

    def apply(
        self,
        x_NF: Tensor,
        out_NF: Tensor,
        passed: Tensor | None = None,
        sums: kernels.Sums | None = None,
    ) -> None:
        """Write y to `out`, which may be `x` itself; `passed` is from `kernels.new_passed`.

        Args:
            sums: applied to `x` first, on a GPU.
        """
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
            sums=sums,
        )

    def gradient(self, y_NF: Tensor, g_NF: Tensor, out_NF: Tensor | None = None) -> Tensor:
        """Return the gradient of x from that of y: a new `[n, F]`, or `out`, which may be `g`."""
        return self._gradient(g_NF, out_NF, y_NF=y_NF)

    def gradient_of_passed(
        self, passed: Tensor, g_NF: Tensor, out_NF: Tensor | None = None
    ) -> Tensor:
        """Return the gradient as `gradient` does, from the `passed` that `apply` wrote, not y."""
        return self._gradient(g_NF, out_NF, passed=passed)

    def _gradient(self, g_NF: Tensor, out_NF: Tensor | None, **known: Tensor) -> Tensor:
        seed, epoch, layer = self.key
        if g_NF.stride(-1) != 1:
            g_NF, out_NF = g_NF.contiguous(), None
        if out_NF is None:
            out_NF = torch.empty_like(g_NF, memory_format=torch.contiguous_format)
        kernels.dropout_nodes_backward(
            g_NF, out_NF, self.ids, p=self.p, seed=seed, epoch=epoch, layer=layer, **known
        )
        return out_NF
