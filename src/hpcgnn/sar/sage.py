"""A GraphSAGE layer as one autograd function that processes rows in slabs that fit the cache.

y_i = then(1 / d_i sum_j x_j W_l^T + b + x_i W_r^T)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.arrays import Arrays
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.aggregation import Beside, multiply
from hpcgnn.sar.autograd import first_order, is_own, is_spare, last_saved
from hpcgnn.sar.handed import ConstantGradients, Handed
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
    hands: bool = False,
) -> Tensor:
    """Return the layer's output, `[n, F]` to `[n, G]`; collective.

    The products of x are summed, so this is best where G is at most F. Under autocast to bfloat16
    rows are rounded once for both products.

    Args:
        divisor_N1: of the sums, in their dtype; None for 1.
        sum_NF: the divided sums of x, if they are constant.
        then: applied to the result.
        hands: leave the rows, if sums are given, to the next call, whose x must be the result:
            nothing else may read it before.
    """
    weights = left_GF, right_GF, bias_G
    result: Tensor = _SAGE.apply(x, *weights, divisor_N1, sum_NF, graph, then, hands)
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
        hands: bool,
    ) -> Tensor:
        wire = wire_type(x_NF)
        handed = _taken(graph, x_NF)
        ctx.previous, ctx.own = handed and handed.gradients, None
        ctx.graph, ctx.wire, ctx.then, ctx.has_bias = graph, wire, then, bias_G is not None
        of_x, arrays, shape = SlabScratch(wire), graph.execution.arrays, (len(x_NF), len(left_GF))
        keeps = any(ctx.needs_input_grad)
        made_NG = arrays.empty(
            *shape, dtype=wire if sum_NF is None else x_NF.dtype, device=x_NF.device
        )
        slabs = row_slabs(made_NG)
        with torch.autocast("cpu", enabled=False):
            weights = left_GF.t(), right_GF.t()
            left, right = (RowProduct(w_FG, wire, most=slabs[0].stop) for w_FG in weights)
            finish = _Finish(x_NF, left, right, of_x, sum_NF, divisor_N1, bias_G, then, keeps)
            if sum_NF is None:
                z_NG = made_NG
                del made_NG

                def project(rows: slice) -> None:
                    if handed is not None:
                        handed.make(rows)
                    left.write(of_x.rounded(x_NF[rows]), z_NG[rows])

                first = first_sent(graph.in_edges)
                sent = InTurn([rows for rows in slabs if rows.stop > first], project)
                kept = InTurn([rows for rows in slabs if rows.stop <= first], project)

                def others(progress: Progress) -> None:
                    sent.rest(progress)  # also slabs that no message was packed from yet
                    kept.rest(progress)

                finish.aside_NG = z_NG if wire == x_NF.dtype else None
                y_NG = multiply(
                    graph,
                    graph.in_edges,
                    z_NG,
                    weighted=False,
                    where="sum forward",
                    beside=Beside(
                        before=sent.before, meanwhile=others, after=finish, spare=finish.ahead
                    ),
                )
                del z_NG
            else:
                y_NG = made_NG
            if hands and sum_NF is not None:
                finish.begin(y_NG)
                if keeps:
                    given = x_NF, sum_NF, then, finish.passed, wire
                    ctx.own = ConstantGradients(*given, has_bias=bias_G is not None)
                graph.execution.handed = Handed(y_NG, partial(finish.slab, y_NG), ctx.own)
            else:
                finish(y_NG, len(y_NG))
            finish.aside_NG = None
        passed = finish.passed if ctx.own is None else None  # it isn't written yet
        ctx.save_for_backward(x_NF, left_GF, right_GF, divisor_N1, sum_NF, passed)
        return y_NG

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_NF, left_GF, right_GF, divisor_N1, sum_NF, passed), _ = last_saved(ctx)
        if sum_NF is not None:
            return _of_constant(ctx, grads, x_NF, right_GF, sum_NF, passed)
        graph, wire, then, weight = ctx.graph, ctx.wire, ctx.then, left_GF.dtype
        own, alone = is_own(grads), graph.in_edges.num_parts == 1
        in_place = then is None or own
        grad_NG = grads[0] if then is None else grads[0].contiguous()
        arrays, of_grad, of_x = graph.execution.arrays, SlabScratch(wire), SlabScratch(wire)
        g_NG = grad_NG if in_place else arrays.like(grad_NG)
        left, right = ProductSum(wire), ProductSum(wire)
        bias_G = g_NG.new_zeros(g_NG.shape[1], dtype=torch.float64)
        into_NG, scale_N, divided_SG = g_NG, None, None
        if divisor_N1 is not None:
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
            if alone:
                right.add(of_grad.rounded(g_SG), of_x.rounded(x_NF[rows]))

        def weights(progress: Progress) -> None:
            for rows in [] if alone else row_slabs(g_NG):
                right.add(of_grad.rounded(g_NG[rows]), of_x.rounded(x_NF[rows]))
                progress()

        spare = is_spare(x_NF)
        factors = RowProduct(right_GF, wire), RowProduct(left_GF, wire)
        with_x = ctx.needs_input_grad[0]
        through = _Through(x_NF, g_NG, *factors, left, wire, with_x, spare, arrays, ctx.previous)
        if own or g_NG is not grads[0]:
            through.take_aside()
        into_NG = multiply(
            graph,
            graph.out_edges,
            into_NG,
            weighted=False,
            where="sum backward",
            wire=wire,
            scale_N=scale_N,
            beside=Beside(meanwhile=weights, after=through, spare=through.ahead),
        )
        through(into_NG, len(into_NG))
        if ctx.previous is not None and through.grad_NF is not None:
            ctx.previous.seal(through.grad_NF)
        grad_bias = bias_G.to(weight) if ctx.has_bias else None
        found = (through.grad_NF, left.result(weight), right.result(weight), grad_bias)
        return *found, *[None] * 5


def _of_constant(
    ctx: Any,
    grads: tuple[Tensor, ...],
    x_NF: Tensor,
    right_GF: Tensor,
    sum_NF: Tensor,
    passed: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a layer whose sums are constant."""
    in_place = is_own(grads)
    then, weight, found = ctx.then, right_GF.dtype, ctx.own
    if found is not None and found.are_of(grads[0]):
        grad_NG = g_NG = grads[0]
    else:
        if found is None:
            found = ConstantGradients(x_NF, sum_NF, then, passed, ctx.wire, has_bias=ctx.has_bias)
        grad_NG = grads[0] if then is None else grads[0].contiguous()
        g_NG = grad_NG if then is None or in_place else ctx.graph.execution.arrays.like(grad_NG)
        found.begin(grad_NG)
        for rows in row_slabs(grad_NG):
            found.add(rows, grad_NG[rows], g_NG[rows])
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = product(g_NG, right_GF.t(), ctx.wire).to(weight)
    grad_bias = found.bias_G.to(weight) if ctx.has_bias else None
    return grad_x, found.left.result(weight), found.right.result(weight), grad_bias, *[None] * 5


def _taken(graph: PartitionedGraph, x_NF: Tensor) -> Handed | None:
    """Return what the layer before left to this one, whose input is `x`."""
    handed, graph.execution.handed = graph.execution.handed, None
    return handed if handed is not None and handed.y_NG.data_ptr() == x_NF.data_ptr() else None


@dataclass
class _Finish:
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
        rows = _next_slab(self.aside_NG, max(self.done, self.aside))
        if rows is None:
            return False
        self.right.write(self.of_x.rounded(self.x_NF[rows]), self.aside_NG[rows])
        self.aside = rows.stop
        return True


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
    previous: ConstantGradients | None = None  # of the layer before, computed along
    grad_NF: Tensor | None = None
    done: int = 0  # rows
    aside: int = 0  # rows before which those that aren't done have `g W_r` in place of g

    def __post_init__(self) -> None:
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
        rows = _next_slab(self.g_NG, max(self.done, self.aside))
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


def _next_slab(x_NK: Tensor, start: int) -> slice | None:
    """Return the slab that begins with row `start`; None at the end."""
    return next((rows for rows in row_slabs(x_NK) if start == rows.start < len(x_NK)), None)


def _divide(sum_SG: Tensor, divisor_S1: Tensor | None, bias_G: Tensor | None) -> None:
    """Compute `sum / divisor + bias`, in place."""
    if divisor_S1 is not None and bias_G is not None:
        torch.addcdiv(bias_G, sum_SG, divisor_S1, out=sum_SG)
    elif divisor_S1 is not None:
        sum_SG.div_(divisor_S1)
    elif bias_G is not None:
        sum_SG.add_(bias_G)
