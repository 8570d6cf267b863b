"""Fused dynamic attention over the ring (GATv2, Brody et al. 2022).

    l_ij = <att, LeakyReLU(zl_j + zr_i + f_ij M)>,  a_ij = softmax_i(l_ij),  o_i = sum_j a_ij zl_j

with edge features f_ij where asked for; f_ij M is made edge by edge and never stored.
The score needs both rows of an edge, so the owner of a source can't finish its gradient alone:
backward fetches zl of boundary sources again (mode `sar`) and sends its gradient back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.checks import sum_type
from hpcgnn.sar.attention import (
    AttentionSettings,
    bias_gradient,
    edge_dropout,
    exchange_halo_ids,
    local_blocks,
    normalised,
)
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.hubs import Returned, RowSums, SoftmaxSums
from hpcgnn.sar.products import head_products, readable, wire_type
from hpcgnn.sar.stream import (
    Payload,
    Progress,
    return_gradients,
    stream,
    stream_and_return,
    work,
)


def gatv2(
    graph: PartitionedGraph,
    left_NK: Tensor,
    right_NK: Tensor,
    att_HC: Tensor,
    edge_DK: Tensor | None,
    bias_K: Tensor | None,
    settings: AttentionSettings,
) -> Tensor:
    """Attention output plus bias, `[n, H * C]`, from `zl` and `zr`; collective.

    Nodes without in-edges get the bias.

    Args:
        edge_DK: the matrix M that edge features of width D are multiplied with; None without.
    """
    for name, rows_NK in (("sources", left_NK), ("destinations", right_NK)):
        check_rows(graph, rows_NK, who=f"attention: {name}", width=att_HC.numel())
    result: Tensor = _GATv2.apply(left_NK, right_NK, att_HC, edge_DK, bias_K, graph, settings)
    return result


class _GATv2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        left_NK: Tensor,
        right_NK: Tensor,
        att_HC: Tensor,
        edge_DK: Tensor | None,
        bias_K: Tensor | None,
        graph: PartitionedGraph,
        settings: AttentionSettings,
    ) -> Tensor:
        ctx.dtype = left_NK.dtype
        if settings.dropout:
            graph.execution.mask_key(settings.layer)
        left_NK, right_NK = readable(left_NK).contiguous(), readable(right_NK).contiguous()
        edge_DK = None if edge_DK is None else edge_DK.contiguous()
        heads, edges = att_HC.shape[0], graph.in_edges
        ctx.wire, dtype = wire_type(left_NK), sum_type(left_NK.dtype)
        row_max_NH = left_NK.new_full((len(left_NK), heads), -torch.inf, dtype=dtype)
        row_sum_NH, out_NK = torch.zeros_like(row_max_NH), torch.zeros_like(left_NK, dtype=dtype)
        softmax = kernels.RunningSoftmax(row_max_NH, row_sum_NH, out_NK)
        kept: list[Tensor] | None = None if graph.mode == "sar" else []

        exchange_halo_ids(graph, edges, settings)
        local = local_blocks(graph, edges, settings.self_loops)
        for block, (left_MK,), progress in stream(
            graph,
            edges,
            Payload((left_NK,), ctx.wire),
            where="attention forward",
            local=local,
            kept=kept,
            sums=SoftmaxSums(softmax),
            by_row=True,
        ):
            inputs = kernels.Projections(left_MK, right_NK, att_HC)
            dropout = edge_dropout(graph, edges, block, settings, graph.epoch)
            scoring = kernels.Scoring(settings.slope, dropout, edge_DK)
            for rows in work(block, edges.num_parts):
                kernels.gatv2_forward(block, inputs, softmax, scoring, rows=rows)
                progress()
        out_NK, lse_NH = normalised(softmax, bias_K)
        out_NK = out_NK.to(left_NK.dtype)
        ctx.graph, ctx.settings = graph, settings
        ctx.epoch, ctx.keeps = graph.epoch, kept is not None
        graph.execution.keep_exact(lse_NH, *(kept or ()))
        ctx.save_for_backward(
            left_NK, right_NK, att_HC, edge_DK, bias_K, out_NK, lse_NH, *(kept or ())
        )
        return out_NK

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        left_NK, right_NK, att_HC, edge_DK, bias_K, out_NK, lse_NH, *kept = ctx.saved_tensors
        graph: PartitionedGraph = ctx.graph
        settings, edges = ctx.settings, graph.in_edges
        g_NK = grads[0].contiguous()
        d_NH = head_products(g_NK, out_NK, att_HC.shape[0], bias_K)
        dtype = sum_type(left_NK.dtype)
        grad_left = torch.zeros_like(left_NK, dtype=dtype)
        grad_right = torch.zeros_like(right_NK, dtype=dtype)
        # Sums over all edges, a part from each message: however many there are.
        grad_att = torch.zeros_like(att_HC, dtype=torch.float64)
        grad_edge = None if edge_DK is None else torch.zeros_like(edge_DK, dtype=torch.float64)

        def differentiate(
            block: Block, left_MK: Tensor, grad_MK: Tensor, progress: Progress | None = None
        ) -> None:
            def pieces(part: Block) -> Iterator[tuple[int, int]]:
                for rows in work(part, edges.num_parts):
                    yield rows
                    if progress is not None:
                        progress()

            dropout = edge_dropout(graph, edges, block, settings, ctx.epoch)
            kernels.gatv2_backward(
                block,
                kernels.Projections(left_MK, right_NK, att_HC),
                kernels.ResultGradient(g_NK, lse_NH, d_NH),
                kernels.GATv2Gradients(grad_MK, grad_right, grad_att, grad_edge),
                kernels.Scoring(settings.slope, dropout, edge_DK),
                pieces=pieces,
            )

        returned = Returned(edges, grad_left)

        def produce(index: int, block: Block, out_MK: Tensor) -> None:
            grad_MK = out_MK if out_MK.dtype == dtype else torch.zeros_like(out_MK, dtype=dtype)
            differentiate(block, readable(kept[index]), grad_MK)
            out_MK.copy_(grad_MK)

        local = local_blocks(graph, edges, settings.self_loops)

        def differentiate_here(progress: Progress) -> None:
            for block in local:
                differentiate(block, left_NK, grad_left)
                progress()

        if ctx.keeps:
            return_gradients(
                graph,
                edges,
                left_NK.shape[1],
                ctx.wire,
                produce,
                returned.accept,
                where="attention backward",
                first=differentiate_here,
                sums=RowSums(grad_right),
            )
        else:
            # Gradients that come back are added to those of the local edges: in this order.
            for block, (left_MK,), grad_MK, progress in stream_and_return(
                graph,
                edges,
                Payload((left_NK,), ctx.wire),
                grad_left,
                returned.accept,
                where="attention backward",
                local=local,
                in_order=True,
                sums=RowSums(grad_right),
            ):
                differentiate(block, left_MK, grad_MK, progress)
        returned.end()
        grad_left, grad_right = grad_left.to(ctx.dtype), grad_right.to(ctx.dtype)
        grad_bias, grad_att = bias_gradient(g_NK, bias_K), grad_att.to(att_HC.dtype)
        if grad_edge is not None and edge_DK is not None:
            grad_edge = grad_edge.to(edge_DK.dtype)
        return grad_left, grad_right, grad_att, grad_edge, grad_bias, None, None
