"""Elementwise maximum and minimum over in-neighbours, exact over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.checks import sum_type
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.mixed_precision import readable, wire_type
from hpcgnn.sar.stream import Payload, stream, work


def neighbour_max(graph: PartitionedGraph, x: Tensor, *, smallest: bool = False) -> Tensor:
    """`y[i] = max over edges j -> i of x[j]` (minimum with `smallest`); 0 without in-edges.

    The gradient is shared evenly among the edges that attain the extremum, as torch does. Backward
    sends (extremum, share) of boundary destinations to the sources' owners and returns nothing.
    """
    check_rows(graph, x, who="an extremum over neighbours")
    result: Tensor = _Extremum.apply(x, graph, -1 if smallest else 1)
    return result


class _Extremum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, graph: PartitionedGraph, sign: int) -> Tensor:
        ctx.dtype, x_NF = x_NF.dtype, readable(x_NF).contiguous()
        wire = ctx.wire = wire_type(x_NF)
        # Rounded before they are compared: who attains the extremum is found again in backward.
        x_NF = x_NF.to(wire).to(x_NF.dtype)
        best_NF = torch.full_like(x_NF, -sign * torch.inf)
        ties_NF = torch.zeros(x_NF.shape, dtype=torch.int32, device=x_NF.device)
        edges = graph.in_edges
        payload = Payload((x_NF,), wire)
        for block, (x_MF,), progress in stream(graph, edges, payload, where="max forward"):
            for rows in work(block, edges.num_parts):
                kernels.spmm_max(block, x_MF, best_NF, ties_NF, sign=sign, rows=rows)
                progress()
        best_NF.masked_fill_(ties_NF == 0, 0)
        ctx.graph = graph
        ctx.save_for_backward(x_NF, best_NF, ties_NF)
        return best_NF

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x_NF, best_NF, ties_NF = ctx.saved_tensors
        graph: PartitionedGraph = ctx.graph
        share_NF = grads[0] / ties_NF.clamp(min=1)
        edges = graph.out_edges
        grad_NF = torch.zeros_like(x_NF, dtype=sum_type(x_NF.dtype))
        payload = Payload((best_NF, share_NF), ctx.wire)
        for block, (best_MF, share_MF), progress in stream(
            graph, edges, payload, where="max backward"
        ):
            for rows in work(block, edges.num_parts):
                kernels.spmm_max_backward(block, best_MF, share_MF, x_NF, grad_NF, rows=rows)
                progress()
        return grad_NF.to(ctx.dtype), None, None
