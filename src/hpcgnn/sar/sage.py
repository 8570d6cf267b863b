"""A GraphSAGE layer as one autograd function that processes rows in slabs that fit the cache.

y_i = then(1 / d_i sum_j x_j W_l^T + b + x_i W_r^T)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.arrays import Arrays
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.aggregation import Beside, multiply
from hpcgnn.sar.autograd import first_order, is_own, is_spare, last_saved
from hpcgnn.sar.products import (
    ProductSum,
    RowProduct,
    SlabScratch,
    product,
    row_slabs,
    wire_type,
)
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.stream import first_sent
from hpcgnn.sar.turns import InTurn, Progress, nothing


def sage(
    graph: PartitionedGraph,
    x: Tensor,
    left_GF: Tensor,
    right_GF: Tensor,
    bias_G: Tensor | None,
    divisor_N1: Tensor | None,
    *,
    sum_NF: Tensor | None = None,
    then: ReluDropout | None = None,
) -> Tensor:
    """Return the layer's output, `[n, F]` to `[n, G]`; collective.

    The products of x are summed, so this is best where G is at most F. Under autocast to bfloat16
    rows are rounded once for both products.

    Args:
        divisor_N1: of the sums, in their dtype; None for 1.
        sum_NF: the divided sums of x, if they are constant.
        then: applied to the result.
    """
    result: Tensor = _SAGE.apply(x, left_GF, right_GF, bias_G, divisor_N1, sum_NF, graph, then)
    return result


class _SAGE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NF: Tensor,
        left_GF: Tensor,
        right_GF: Tensor,
        bias_G: Tensor | None,
        divisor_N1: Tensor | None,
        sum_NF: Tensor | None,
        graph: PartitionedGraph,
        then: ReluDropout | None,
    ) -> Tensor:
        wire = wire_type(x_NF)
        ctx.graph, ctx.wire, ctx.then, ctx.has_bias = graph, wire, then, bias_G is not None
        of_x, arrays, shape = SlabScratch(wire), graph.execution.arrays, (len(x_NF), len(left_GF))
        keeps = any(ctx.needs_input_grad)
        with torch.autocast("cpu", enabled=False):
            left, right = (RowProduct(w_GF.t(), wire) for w_GF in (left_GF, right_GF))
            finish = _Finish(x_NF, left, right, of_x, sum_NF, divisor_N1, bias_G, then, keeps)
            if sum_NF is None:
                z_NG = arrays.empty(*shape, dtype=wire, device=x_NF.device)

                def project(rows: slice) -> None:
                    left.write(of_x.rounded(x_NF[rows]), z_NG[rows])

                slabs, first = row_slabs(z_NG), first_sent(graph.in_edges)
                sent = InTurn([rows for rows in slabs if rows.stop > first], project)
                kept = InTurn([rows for rows in slabs if rows.stop <= first], project)

                def others(progress: Progress) -> None:
                    sent.rest(progress)  # also slabs that no message was packed from yet
                    kept.rest(progress)

                y_NG = multiply(
                    graph,
                    graph.in_edges,
                    z_NG,
                    weighted=False,
                    where="sum forward",
                    beside=Beside(sent.before, others, finish),
                )
                del z_NG
            else:
                y_NG = arrays.empty(*shape, dtype=x_NF.dtype, device=x_NF.device)
            finish(y_NG, len(y_NG))
        ctx.save_for_backward(x_NF, left_GF, right_GF, divisor_N1, sum_NF, finish.passed)
        return y_NG

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_NF, left_GF, right_GF, divisor_N1, sum_NF, passed), _ = last_saved(ctx)
        graph, wire, then, weight = ctx.graph, ctx.wire, ctx.then, left_GF.dtype
        in_place, alone = then is None or is_own(grads), graph.in_edges.num_parts == 1
        grad_NG = grads[0] if then is None else grads[0].contiguous()
        arrays, of_grad, of_x = graph.execution.arrays, SlabScratch(wire), SlabScratch(wire)
        g_NG = grad_NG if in_place else arrays.like(grad_NG)
        left, right = ProductSum(wire), ProductSum(wire)
        bias_G = g_NG.new_zeros(g_NG.shape[1], dtype=torch.float64)
        into_NG, scale_N, divided_SG = g_NG, None, None
        if sum_NF is None and divisor_N1 is not None:
            if wire == g_NG.dtype:
                scale_N = divisor_N1.reciprocal().flatten()  # applied where rows are gathered
            else:
                into_NG = arrays.like(g_NG, wire)
                divided_SG = torch.empty_like(g_NG[row_slabs(g_NG)[0]])
        for rows in row_slabs(g_NG):
            g_SG = g_NG[rows]
            if then is not None:
                then.of(rows).gradient_of_passed(passed[rows], grad_NG[rows], g_SG)
            if ctx.has_bias:
                bias_G += g_SG.sum(dim=0)
            if divided_SG is not None and divisor_N1 is not None:
                into_NG[rows] = torch.div(g_SG, divisor_N1[rows], out=divided_SG[: len(g_SG)])
            if alone or sum_NF is not None:
                g_SG = of_grad.rounded(g_SG)
                right.add(g_SG, of_x.rounded(x_NF[rows]))
            if sum_NF is not None:
                left.add(g_SG, of_x.rounded(sum_NF[rows]))

        def weights(progress: Progress) -> None:
            for rows in [] if alone else row_slabs(g_NG):
                right.add(of_grad.rounded(g_NG[rows]), of_x.rounded(x_NF[rows]))
                progress()

        grad_x = None
        if sum_NF is None:
            spare = is_spare(x_NF)
            factors = RowProduct(right_GF, wire), RowProduct(left_GF, wire)
            with_x = ctx.needs_input_grad[0]
            through = _Through(x_NF, g_NG, *factors, left, wire, with_x, spare, arrays)
            into_NG = multiply(
                graph,
                graph.out_edges,
                into_NG,
                weighted=False,
                where="sum backward",
                wire=wire,
                scale_N=scale_N,
                beside=Beside(meanwhile=weights, after=through),
            )
            through(into_NG, len(into_NG))
            grad_x = through.grad_NF
        elif ctx.needs_input_grad[0]:
            grad_x = product(g_NG, right_GF.t(), wire).to(weight)
        grad_bias = bias_G.to(weight) if ctx.has_bias else None
        found = (grad_x, left.result(weight), right.result(weight), grad_bias)
        return *found, None, None, None, None


@dataclass
class _Finish:
    """The forward steps after the sums, applied once to each slab of rows, in order."""

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
    done: int = 0  # rows

    def __call__(self, y_NG: Tensor, end: int, progress: Progress = nothing) -> None:
        """Process the slabs before row `end`."""
        if self.passed is None and self.then is not None and self.keeps:
            self.passed = kernels.new_passed(y_NG, y_NG)
        for rows in row_slabs(y_NG):
            if rows.start < self.done or rows.stop > end:
                continue
            y_SG, divisor_N1 = y_NG[rows], self.divisor_N1
            if self.sum_NF is None:
                _divide(y_SG, None if divisor_N1 is None else divisor_N1[rows], self.bias_G)
            else:
                self.left.write(self.of_x.rounded(self.sum_NF[rows]), y_SG, start_G=self.bias_G)
            self.right.add(self.of_x.rounded(self.x_NF[rows]), y_SG)
            if self.then is not None:
                passed = None if self.passed is None else self.passed[rows]
                self.then.of(rows).apply(y_SG, y_SG, passed)
            self.done = rows.stop
            progress()


@dataclass
class _Through:
    """The backward steps after the sums, applied once to each slab of rows, in order.

    They compute the gradient of x, if asked for, and the sums of `left`.
    """

    x_NF: Tensor
    g_NG: Tensor
    right_GF: RowProduct
    left_GF: RowProduct
    left: ProductSum
    wire: torch.dtype  # of products
    with_x: bool
    spare: bool  # the gradient of x may be written over x
    arrays: Arrays
    grad_NF: Tensor | None = None
    done: int = 0  # rows

    def __post_init__(self) -> None:
        self.of_into, self.of_g, self.of_x = (SlabScratch(self.wire) for _ in range(3))
        self.part_SF: Tensor | None = None

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
                to_SF = self.part_SF[: len(into_SG)]
                self.right_GF.write(self.of_g.rounded(self.g_NG[rows]), to_SF)
                self.grad_NF[rows] = self.left_GF.add(into_SG, to_SF)
            self.done = rows.stop
            progress()

    def _begin(self, into_NG: Tensor, most: int) -> None:
        x_NF = self.x_NF
        self.part_SF = x_NF.new_empty(most, x_NF.shape[1])
        if not self.with_x:
            return
        if into_NG.shape == x_NF.shape and into_NG.dtype == x_NF.dtype:
            self.grad_NF = into_NG
        else:
            self.grad_NF = x_NF if self.spare else self.arrays.like(x_NF)


def _divide(sum_SG: Tensor, divisor_S1: Tensor | None, bias_G: Tensor | None) -> None:
    """Compute `sum / divisor + bias`, in place."""
    if divisor_S1 is not None and bias_G is not None:
        torch.addcdiv(bias_G, sum_SG, divisor_S1, out=sum_SG)
    elif divisor_S1 is not None:
        sum_SG.div_(divisor_S1)
    elif bias_G is not None:
        sum_SG.add_(bias_G)
