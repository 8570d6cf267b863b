"""A GraphSAGE layer as one autograd function that processes rows in slabs that fit the cache.

y_i = then(1 / d_i sum_j x_j W_l^T + b + x_i W_r^T)

Forward sums the products `x W_l` over edges; `OutputRows` does the rest. Backward sums what
`OutputGradients` makes over the reversed edges; `InputGradients` does the rest. On a CPU all three
work while messages travel.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.aggregation import Beside, multiply
from hpcgnn.sar.autograd import first_order, is_own, is_spare, last_saved
from hpcgnn.sar.handed import Handed, taken
from hpcgnn.sar.products import RowProduct, SlabScratch, row_slabs, wire_type
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.sage_constant import ConstantGradients
from hpcgnn.sar.sage_gradients import InputGradients, OutputGradients
from hpcgnn.sar.sage_output import OutputRows
from hpcgnn.sar.stream import first_sent
from hpcgnn.sar.turns import InTurn, Progress


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
        sum_NF: the divided sums of x, if x is constant.
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
        wire, handed = wire_type(x_NF), taken(graph, x_NF)
        ctx.previous, ctx.own = handed and handed.gradients, None
        ctx.graph, ctx.wire, ctx.then, ctx.has_bias = graph, wire, then, bias_G is not None
        keeps, shape = any(ctx.needs_input_grad), (len(x_NF), len(left_GF))
        y_NG = graph.execution.arrays.empty(
            *shape, dtype=wire if sum_NF is None else x_NF.dtype, device=x_NF.device
        )
        most = row_slabs(y_NG)[0].stop
        with torch.autocast("cpu", enabled=False):
            left, right = (RowProduct(w_GF.t(), wire, most=most) for w_GF in (left_GF, right_GF))
            given = x_NF, left, right, SlabScratch(wire), sum_NF, divisor_N1, bias_G, then
            output = OutputRows(*given, keeps=keeps)
            if sum_NF is None:  # what was taken is memory for the products
                y_NG = _sums_of_products(graph, y_NG, output, handed)
            if hands and sum_NF is not None:
                output.begin(y_NG)
                if keeps:
                    known = x_NF, sum_NF, then, output.passed, wire
                    ctx.own = ConstantGradients(*known, has_bias=ctx.has_bias)
                graph.execution.handed = Handed(y_NG, partial(output.slab, y_NG), ctx.own)
            else:
                output(y_NG, len(y_NG))
            output.aside_NG = None
        passed = output.passed if ctx.own is None else None  # it isn't written yet
        ctx.save_for_backward(x_NF, left_GF, right_GF, divisor_N1, sum_NF, passed)
        return y_NG

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_NF, left_GF, right_GF, divisor_N1, sum_NF, passed), _ = last_saved(ctx)
        graph, wire, then, weight = ctx.graph, ctx.wire, ctx.then, left_GF.dtype
        own, arrays, found = is_own(grads), graph.execution.arrays, ctx.own
        if sum_NF is not None:
            if found is None:
                found = ConstantGradients(x_NF, sum_NF, then, passed, wire, has_bias=ctx.has_bias)
            found.complete(grads[0], arrays, in_place=own)
            return None, *found.results(weight), *[None] * 5
        spare = is_spare(x_NF)
        grad_NG = grads[0] if then is None else grads[0].contiguous()
        g_NG = grad_NG if then is None or own else arrays.like(grad_NG)
        before = OutputGradients(x_NF, g_NG, divisor_N1, wire, arrays)
        alone = graph.in_edges.num_parts == 1
        before.make(grad_NG, then, passed, has_bias=ctx.has_bias, alone=alone)
        products = RowProduct(right_GF, wire), RowProduct(left_GF, wire)
        with_x = ctx.needs_input_grad[0]
        after = InputGradients(x_NF, g_NG, *products, wire, with_x, spare, arrays, ctx.previous)
        if own or g_NG is not grads[0]:
            after.take_aside()
        sum_NG = multiply(
            graph,
            graph.out_edges,
            before.into_NG,
            weighted=False,
            where="sum backward",
            wire=wire,
            scale_N=before.scale_N,
            beside=Beside(meanwhile=before.weights, after=after, spare=after.ahead),
        )
        after(sum_NG, len(sum_NG))
        if ctx.previous is not None and after.grad_NF is not None:
            ctx.previous.seal(after.grad_NF)
        grad_bias = before.bias_G.to(weight) if ctx.has_bias else None
        weights = after.left.result(weight), before.right.result(weight)
        return after.grad_NF, *weights, grad_bias, *[None] * 5


def _sums_of_products(
    graph: PartitionedGraph, z_NG: Tensor, output: OutputRows, handed: Handed | None
) -> Tensor:
    """Return the rows of the output, made of the sums of `x W_l` over in-neighbours; collective.

    Products of rows that are sent come first, all others while messages travel.

    Args:
        z_NG: memory for the products.
        handed: rows of x that aren't made yet.
    """
    x_NF = output.x_NF

    def project(rows: slice) -> None:
        if handed is not None:
            handed.make(rows)
        output.left.write(output.of_x.rounded(x_NF[rows]), z_NG[rows])

    slabs, first = row_slabs(z_NG), first_sent(graph.in_edges)
    sent = InTurn([rows for rows in slabs if rows.stop > first], project)
    kept = InTurn([rows for rows in slabs if rows.stop <= first], project)

    def others(progress: Progress) -> None:
        sent.rest(progress)  # also slabs that no message was packed from yet
        kept.rest(progress)

    output.aside_NG = z_NG if z_NG.dtype == x_NF.dtype else None
    return multiply(
        graph,
        graph.in_edges,
        z_NG,
        weighted=False,
        where="sum forward",
        beside=Beside(before=sent.before, meanwhile=others, after=output, spare=output.ahead),
    )
