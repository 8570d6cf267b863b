"""The gradients of a GraphSAGE layer before and after its sums over the reversed edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn.graph.arrays import Arrays
from hpcgnn.sar.products import ProductSum, RowProduct, SlabScratch, next_slab, row_slabs
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.sage_constant import ConstantGradients
from hpcgnn.sar.turns import Progress, nothing


class OutputGradients:
    """The backward steps before the sums: the gradient g before `then`, and what follows from it.

    Args:
        x_NF: the layer's input.
        g_NG: memory for g.
        divisor_N1: of the forward sums; None for 1.
        wire: dtype of products, and of rows in messages.

    Attributes:
        into_NG: the rows that are summed over the reversed edges, times `scale_N` if given.
        scale_N: factors of these rows, applied where they are gathered.
        right, bias_G: the gradients of these weights.
    """

    def __init__(
        self,
        x_NF: Tensor,
        g_NG: Tensor,
        divisor_N1: Tensor | None,
        wire: torch.dtype,
        arrays: Arrays,
    ) -> None:
        self.x_NF, self.g_NG, self.divisor_N1 = x_NF, g_NG, divisor_N1
        self.of_grad, self.of_x, self.right = SlabScratch(wire), SlabScratch(wire), ProductSum(wire)
        self.bias_G = g_NG.new_zeros(g_NG.shape[1], dtype=torch.float64)
        self.into_NG = g_NG
        self.scale_N: Tensor | None = None
        self._divided_SG: Tensor | None = None
        self._right_is_made = False
        if divisor_N1 is None:
            return
        if wire == g_NG.dtype:
            self.scale_N = divisor_N1.reciprocal().flatten()
        else:
            self.into_NG = arrays.like(g_NG, wire)
            self._divided_SG = torch.empty_like(g_NG[row_slabs(g_NG)[0]])

    def make(
        self,
        grad_NG: Tensor,
        then: ReluDropout | None,
        passed: Tensor | None,
        *,
        has_bias: bool,
        alone: bool,
    ) -> None:
        """Compute g, and the rows that are summed.

        Args:
            grad_NG: the gradient of the layer's output: g itself without `then`.
            passed: what `then` recorded.
            alone: on one rank: also compute what `weights` computes beside messages.
        """
        self._right_is_made = alone
        for rows in row_slabs(self.g_NG):
            g_SG = self.g_NG[rows]
            if then is not None and passed is not None:
                then.of(rows).gradient_of_passed(passed[rows], grad_NG[rows], g_SG)
            if has_bias:
                self.bias_G += g_SG.sum(dim=0)
            if self._divided_SG is not None and self.divisor_N1 is not None:
                divided_SG = self._divided_SG[: len(g_SG)]
                self.into_NG[rows] = torch.div(g_SG, self.divisor_N1[rows], out=divided_SG)
            if alone:
                self.right.add(self.of_grad.rounded(g_SG), self.of_x.rounded(self.x_NF[rows]))

    def weights(self, progress: Progress) -> None:
        """Add up the gradient of W_r while messages are in flight."""
        for rows in [] if self._right_is_made else row_slabs(self.g_NG):
            g_SG = self.of_grad.rounded(self.g_NG[rows])
            self.right.add(g_SG, self.of_x.rounded(self.x_NF[rows]))
            progress()


@dataclass
class InputGradients:
    """The backward steps after the sums, applied once to each slab of rows, in order.

    They compute the gradient of x, if asked for, and that of W_l.
    """

    x_NF: Tensor
    g_NG: Tensor
    right_GF: RowProduct
    left_GF: RowProduct
    wire: torch.dtype  # of products
    with_x: bool
    spare: bool  # the gradient of x may be written over x
    arrays: Arrays
    previous: ConstantGradients | None = None  # of the layer before, computed along
    grad_NF: Tensor | None = None
    done: int = 0  # rows
    aside: int = 0  # rows before which those that aren't done have `g W_r` in place of g

    def __post_init__(self) -> None:
        self.left = ProductSum(self.wire)
        self.of_into, self.of_g, self.of_x = (SlabScratch(self.wire) for _ in range(3))
        self.part_SF: Tensor | None = None
        self.aside_NF: Tensor | None = None

    def take_aside(self) -> None:
        """Let `ahead` write over g, where the products fit."""
        width = self.x_NF.shape[1]
        if self.with_x and self.wire == self.g_NG.dtype and width <= self.g_NG.shape[1]:
            self.aside_NF = self.g_NG[:, :width]

    def __call__(self, into_NG: Tensor, end: int, progress: Progress = nothing) -> None:
        """Process the slabs before row `end` of the gradients summed over edges."""
        slabs = row_slabs(into_NG)
        if self.part_SF is None:
            self._begin(into_NG, slabs[0].stop)
        for rows in slabs:
            if rows.start < self.done or rows.stop > end:
                continue
            into_SG = self.of_into.rounded(into_NG[rows])
            self.left.add(into_SG, self.of_x.rounded(self.x_NF[rows]))
            if self.grad_NF is not None and self.part_SF is not None:
                if self.aside_NF is not None and rows.stop <= self.aside:
                    to_SF = self.part_SF[: len(into_SG)].copy_(self.aside_NF[rows])
                else:
                    to_SF = self._of_g(rows, self.part_SF)
                self.grad_NF[rows] = self.left_GF.add(into_SG, to_SF)
                if self.previous is not None:
                    self.previous.follow(self.grad_NF, rows.stop, self.part_SF)
            self.done = rows.stop
            progress()

    def ahead(self) -> bool:
        """Compute `g W_r` of one more slab in place of g; return whether there was any left."""
        if self.aside_NF is None or self.part_SF is None:
            return False
        rows = next_slab(self.g_NG, max(self.done, self.aside))
        if rows is None:
            return False
        self.aside_NF[rows] = self._of_g(rows, self.part_SF)
        self.aside = rows.stop
        return True

    def _of_g(self, rows: slice, to_SF: Tensor) -> Tensor:
        """Return `g W_r` of a slab, in memory that the next slab reuses."""
        g_SG = self.of_g.rounded(self.g_NG[rows])
        return self.right_GF.write(g_SG, to_SF[: len(g_SG)])

    def _begin(self, into_NG: Tensor, most: int) -> None:
        x_NF = self.x_NF
        self.part_SF = x_NF.new_empty(most, x_NF.shape[1])
        if not self.with_x:
            return
        if into_NG.shape == x_NF.shape and into_NG.dtype == x_NF.dtype:
            self.grad_NF = into_NG
        else:
            self.grad_NF = x_NF if self.spare else self.arrays.like(x_NF)
        if self.previous is not None:
            self.previous.begin(self.grad_NF)
