"""The gradients of a GraphSAGE layer whose sums are constant, which needs no messages."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcgnn.graph.arrays import Arrays
from hpcgnn.sar.products import ProductSum, SlabScratch, row_slabs
from hpcgnn.sar.rectifier import ReluDropout


class ConstantGradients:
    """The gradients of the weights and the bias of a layer with constant sums, slab by slab.

    Args:
        x_NF, sum_NF: its input and the sums of it.
        then, passed: see `ReluDropout`.
        wire: dtype of products.
    """

    def __init__(
        self,
        x_NF: Tensor,
        sum_NF: Tensor,
        then: ReluDropout | None,
        passed: Tensor | None,
        wire: torch.dtype,
        *,
        has_bias: bool,
    ) -> None:
        self.x_NF, self.sum_NF, self.then, self.passed = x_NF, sum_NF, then, passed
        self.wire, self.has_bias = wire, has_bias
        self._seen: tuple[int, int, int] | None = None

    def begin(self, grad_NG: Tensor) -> None:
        """Begin with gradients of this shape and dtype; what was computed before is dropped."""
        self.left, self.right = ProductSum(self.wire), ProductSum(self.wire)
        self.of_grad, self.of_x = SlabScratch(self.wire), SlabScratch(self.wire)
        self.bias_G = grad_NG.new_zeros(grad_NG.shape[1], dtype=torch.float64)
        self._slabs, self._done, self._seen = row_slabs(grad_NG), 0, None

    def add(self, rows: slice, grad_SG: Tensor, g_SG: Tensor) -> None:
        """Add the next slab of the output's gradient; `g_SG` may be `grad_SG`, and is changed."""
        if self.then is None or self.passed is None:
            g_SG = grad_SG
        else:
            self.then.of(rows).gradient_of_passed(self.passed[rows], grad_SG, g_SG)
        if self.has_bias:
            self.bias_G += g_SG.sum(dim=0)
        g_SG = self.of_grad.rounded(g_SG)
        self.right.add(g_SG, self.of_x.rounded(self.x_NF[rows]))
        self.left.add(g_SG, self.of_x.rounded(self.sum_NF[rows]))
        self._done = rows.stop

    def follow(self, grad_NG: Tensor, end: int, part_SG: Tensor) -> None:
        """Add the slabs before row `end`, whose gradients are complete and stay as they are.

        Args:
            part_SG: memory for the longest slab.
        """
        for rows in self._slabs:
            if rows.start >= self._done and rows.stop <= end:
                self.add(rows, grad_NG[rows], part_SG[: rows.stop - rows.start])

    def seal(self, grad_NG: Tensor) -> None:
        """Note the gradient that all slabs were taken from."""
        if self._done == len(grad_NG):
            self._seen = _state(grad_NG)

    def are_of(self, grad_NG: Tensor) -> bool:
        """Return whether these are the results for this gradient, unchanged since `seal`."""
        return self._seen is not None and self._seen == _state(grad_NG)

    def complete(self, grad_NG: Tensor, arrays: Arrays, *, in_place: bool) -> None:
        """Add all slabs of the output's gradient, unless `follow` did.

        Args:
            in_place: the gradient may be overwritten.
        """
        if self.are_of(grad_NG):
            return
        grad_NG = grad_NG if self.then is None else grad_NG.contiguous()
        g_NG = grad_NG if self.then is None or in_place else arrays.like(grad_NG)
        self.begin(grad_NG)
        for rows in self._slabs:
            self.add(rows, grad_NG[rows], g_NG[rows])

    def results(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of W_l, W_r and the bias."""
        bias_G = self.bias_G.to(dtype) if self.has_bias else None
        return self.left.result(dtype), self.right.result(dtype), bias_G


def _state(grad_NG: Tensor) -> tuple[int, int, int]:
    return grad_NG.data_ptr(), grad_NG.numel(), grad_NG._version
