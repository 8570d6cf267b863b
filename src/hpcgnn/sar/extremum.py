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
from hpcgnn.sar.stream import stream, take_rows, work


def neighbour_max(graph: PartitionedGraph, x_NF: Tensor, *, smallest: bool = False) -> Tensor:
    """`y[i] = max over edges j -> i of x[j]` (minimum with `smallest`); 0 without in-edges.

    The gradient is shared evenly among the edges that attain the extreme, as torch does. Backward
    sends (extreme, share) of boundary destinations to the sources' owners and returns nothing.
    """
    check_rows(graph, x_NF, who="an extreme over neighbours")
    result: Tensor = _Extremum.apply(x_NF, graph, -1 if smallest else 1)
    return result


class _Extremum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, graph: PartitionedGraph, sign: int) -> Tensor:
        ctx.dtype, x_NF = x_NF.dtype, readable(x_NF).contiguous()
        wire = ctx.wire = wire_type(x_NF)
        # Rounded before they are compared: who attains the extreme is found again in backward.
        x_NF = x_NF.to(wire).to(x_NF.dtype)
        best_NF = torch.full_like(x_NF, -sign * torch.inf)
        ties_NF = torch.zeros(x_NF.shape, dtype=torch.int32, device=x_NF.device)
        edges = graph.in_edges
        exchange, blocks = stream(
            graph, edges, x_NF.shape[1], wire, take_rows(x_NF), where="max forward"
        )
        local = edges.blocks[edges.rank]
        for rows in work(local, edges.num_parts):
            kernels.spmm_max(local, x_NF, best_NF, ties_NF, sign=sign, rows=rows)
            exchange.progress()
        for arrival in exchange:
            block, rows_MF = blocks[arrival.index], readable(arrival.rows_MF)
            for rows in work(block, edges.num_parts):
                kernels.spmm_max(block, rows_MF, best_NF, ties_NF, sign=sign, rows=rows)
                exchange.progress()
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
        width = x_NF.shape[1]
        edges = graph.out_edges
        grad_NF = torch.zeros_like(x_NF, dtype=sum_type(x_NF.dtype))

        def pack(rows: Tensor, out_MF: Tensor) -> None:
            kernels.pack_rows(best_NF, rows, out_MF[:, :width])
            kernels.pack_rows(share_NF, rows, out_MF[:, width:])

        exchange, blocks = stream(graph, edges, 2 * width, ctx.wire, pack, where="max backward")
        local = edges.blocks[edges.rank]
        for rows in work(local, edges.num_parts):
            kernels.spmm_max_backward(local, best_NF, share_NF, x_NF, grad_NF, rows=rows)
            exchange.progress()
        for arrival in exchange:
            rows_MF = readable(arrival.rows_MF)
            best_MF, share_MF = rows_MF[:, :width], rows_MF[:, width:]
            block = blocks[arrival.index]
            for rows in work(block, edges.num_parts):
                kernels.spmm_max_backward(block, best_MF, share_MF, x_NF, grad_NF, rows=rows)
                exchange.progress()
        return grad_NF.to(ctx.dtype), None, None
