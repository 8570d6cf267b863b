"""What a layer without messages leaves to the next layer, which does it between its messages.

A layer whose sums are kept from epoch to epoch has no messages of its own to overlap with. The next
layer makes the rows that it sends first, and all others while messages travel. In backward it
computes the first layer's gradients from rows that are complete while it still awaits messages.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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


def _state(grad_NG: Tensor) -> tuple[int, int, int]:
    return grad_NG.data_ptr(), grad_NG.numel(), grad_NG._version


class Handed:
    """A layer's output, whose rows the next layer makes by `make`.

    Args:
        y_NG: the output.
        make: computes a slab of its rows.
        gradients: of the layer; None if it has no backward.
    """

    def __init__(
        self, y_NG: Tensor, make: Callable[[slice], None], gradients: ConstantGradients | None
    ) -> None:
        self.y_NG, self.gradients = y_NG, gradients
        self._make, self._left = make, row_slabs(y_NG)

    def make(self, rows: slice) -> None:
        """Make the slabs with any of these rows that aren't made yet."""
        due = [slab for slab in self._left if slab.start < rows.stop and rows.start < slab.stop]
        for slab in due:
            self._left.remove(slab)
            self._make(slab)
