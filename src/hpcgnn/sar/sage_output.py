"""The rows of a GraphSAGE layer's output, made of the sums over edges slab by slab."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.sar.products import RowProduct, SlabScratch, next_slab, row_slabs
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.turns import Progress, nothing


@dataclass
class OutputRows:
    """The forward steps after the sums, applied once to each slab of rows, in order.

    Rows that wait for messages add `x W_r` as a whole, since it may be computed before the sums:
    `ahead` does that, into `aside`.
    """

    x_NF: Tensor
    left: RowProduct
    right: RowProduct
    of_x: SlabScratch
    sum_NF: Tensor | None  # divided sums of x, if constant
    divisor_N1: Tensor | None
    bias_G: Tensor | None
    then: ReluDropout | None
    keeps: bool  # whether to record what passed `then`
    passed: Tensor | None = None
    aside_NG: Tensor | None = None  # memory for the products of x
    done: int = 0  # rows
    aside: int = 0  # rows before which those that aren't done have their products in `aside`
    waits: bool = False  # whether the remaining rows wait for messages

    def __post_init__(self) -> None:
        self.part_SG: Tensor | None = None

    def __call__(self, y_NG: Tensor, end: int, progress: Progress = nothing) -> None:
        """Process the slabs before row `end`; those of later calls wait for messages."""
        self.begin(y_NG)
        for rows in row_slabs(y_NG):
            if rows.start < self.done or rows.stop > end:
                continue
            self.slab(y_NG, rows)
            self.done = rows.stop
            progress()
        self.waits = True

    def begin(self, y_NG: Tensor) -> None:
        """Take memory to record what passes `then`."""
        if self.passed is None and self.then is not None and self.keeps:
            self.passed = kernels.new_passed(y_NG, y_NG)

    def slab(self, y_NG: Tensor, rows: slice) -> None:
        """Process one slab."""
        y_SG, divisor_N1 = y_NG[rows], self.divisor_N1
        if self.sum_NF is None:
            _divide(y_SG, None if divisor_N1 is None else divisor_N1[rows], self.bias_G)
        else:
            self.left.write(self.of_x.rounded(self.sum_NF[rows]), y_SG, start_G=self.bias_G)
        if self.aside_NG is None or not self.waits:
            self.right.add(self.of_x.rounded(self.x_NF[rows]), y_SG)
        else:
            y_SG += self._product_of_x(rows, self.aside_NG)
        if self.then is not None:
            passed = None if self.passed is None else self.passed[rows]
            self.then.of(rows).apply(y_SG, y_SG, passed)

    def _product_of_x(self, rows: slice, aside_NG: Tensor) -> Tensor:
        """Return `x W_r` of a slab, if it isn't in `aside` in memory that the next slab reuses."""
        if rows.stop <= self.aside:
            return aside_NG[rows]
        if self.part_SG is None:
            self.part_SG = torch.empty_like(aside_NG[row_slabs(aside_NG)[0]])
        part_SG = self.part_SG[: rows.stop - rows.start]
        return self.right.write(self.of_x.rounded(self.x_NF[rows]), part_SG)

    def ahead(self) -> bool:
        """Compute the products of x of one more slab; return whether there was any left."""
        if self.aside_NG is None:
            return False
        rows = next_slab(self.aside_NG, max(self.done, self.aside))
        if rows is None:
            return False
        self.right.write(self.of_x.rounded(self.x_NF[rows]), self.aside_NG[rows])
        self.aside = rows.stop
        return True


def _divide(sum_SG: Tensor, divisor_S1: Tensor | None, bias_G: Tensor | None) -> None:
    """Compute `sum / divisor + bias`, in place."""
    if divisor_S1 is not None and bias_G is not None:
        torch.addcdiv(bias_G, sum_SG, divisor_S1, out=sum_SG)
    elif divisor_S1 is not None:
        sum_SG.div_(divisor_S1)
    elif bias_G is not None:
        sum_SG.add_(bias_G)
