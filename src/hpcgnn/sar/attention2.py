"""Fused dynamic attention over the ring (GATv2, Brody et al. 2022).

    l_ij = <att, LeakyReLU(zl_j + zr_i)>,  a_ij = softmax_i(l_ij),  o_i = sum_j a_ij zl_j

The score needs both rows of an edge, so the owner of a source can't finish its gradient alone:
backward fetches zl of boundary sources again (mode `sar`) and sends its gradient back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcgnn import kernels
from hpcgnn.graph import Block, PartitionedGraph
from hpcgnn.sar.attention import AttentionSettings, edge_dropout
from hpcgnn.sar.halo import give_back, stream, take_rows
from hpcgnn.sar.loops import local_blocks
from hpcgnn.sar.project import head_products
from hpcgnn.sar.schedule import work


def attention2(
    graph: PartitionedGraph,
    left_NK: Tensor,
    right_NK: Tensor,
    att_HC: Tensor,
    settings: AttentionSettings,
) -> Tensor:
    """Attention output `[n, H * C]` from `zl` and `zr`; 0 without in-edges; collective."""
    result: Tensor = _Attention2.apply(left_NK, right_NK, att_HC, graph, settings)
    return result


class _Attention2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        left_NK: Tensor,
        right_NK: Tensor,
        att_HC: Tensor,
        graph: PartitionedGraph,
        settings: AttentionSettings,
    ) -> Tensor:
        left_NK, right_NK = left_NK.contiguous(), right_NK.contiguous()
        heads, edges = att_HC.shape[0], graph.in_edges
        top_NH = left_NK.new_full((len(left_NK), heads), -torch.inf)
        total_NH, out_NK = torch.zeros_like(top_NH), torch.zeros_like(left_NK)
        kept: list[Tensor] | None = None if graph.mode == "sar" else []

        def add(block: Block, rows_HK: Tensor, rows: tuple[int, int]) -> None:
            dropout = edge_dropout(graph, edges, block, settings, graph.epoch)
            kernels.attention2_forward(
                block, rows_HK, right_NK, att_HC, top_NH, total_NH, out_NK,
                slope=settings.slope, dropout=dropout, rows=rows,
            )  # fmt: skip

        exchange, blocks = stream(
            graph, edges, left_NK.shape[1], left_NK.dtype, take_rows(left_NK),
            where="attention forward",
        )  # fmt: skip
        for block in local_blocks(graph, edges, settings.self_loops):
            for rows in work(block, edges.num_parts):
                add(block, left_NK, rows)
                exchange.progress()
        for arrival in exchange:
            rows_HK = arrival.rows_HF if kept is None else arrival.rows_HF.clone()
            if kept is not None:
                kept.append(rows_HK)
            for rows in work(blocks[arrival.index], edges.num_parts):
                add(blocks[arrival.index], rows_HK, rows)
                exchange.progress()
        total_NH = torch.where(total_NH > 0, total_NH, 1.0)
        top_NH = torch.where(top_NH > -torch.inf, top_NH, 0.0)
        out_NK.view(len(out_NK), heads, out_NK.shape[1] // heads).div_(total_NH[:, :, None])
        ctx.graph, ctx.settings, ctx.epoch, ctx.kept = graph, settings, graph.epoch, kept
        ctx.save_for_backward(left_NK, right_NK, att_HC, out_NK, top_NH + total_NH.log())
        return out_NK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        left_NK, right_NK, att_HC, out_NK, lse_NH = ctx.saved_tensors
        graph: PartitionedGraph = ctx.graph
        settings, edges = ctx.settings, graph.in_edges
        g_NK = grads[0].contiguous()
        d_NH = head_products(g_NK, out_NK, att_HC.shape[0])
        grad_left, grad_right = torch.zeros_like(left_NK), torch.zeros_like(right_NK)
        grad_att = torch.zeros_like(att_HC)

        def differentiate(block: Block, rows_HK: Tensor, grad_HK: Tensor) -> None:
            kernels.attention2_backward(
                block, rows_HK, right_NK, att_HC, g_NK, lse_NH, d_NH, grad_HK, grad_right, grad_att,
                slope=settings.slope,
                dropout=edge_dropout(graph, edges, block, settings, ctx.epoch),
            )  # fmt: skip

        def accept(rows: Tensor, grad_HK: Tensor) -> None:
            grad_left.index_add_(0, rows, grad_HK)

        for block in local_blocks(graph, edges, settings.self_loops):
            differentiate(block, left_NK, grad_left)
        width, dtype = left_NK.shape[1], left_NK.dtype
        if ctx.kept is not None:
            give_back(
                graph, edges, width, dtype,
                lambda index, block, out: differentiate(block, ctx.kept[index], out), accept,
                where="attention backward",
            )  # fmt: skip
        else:
            exchange, blocks = stream(
                graph, edges, width, dtype, take_rows(left_NK), where="attention backward",
                reply_width=width, on_reply=accept,
            )  # fmt: skip
            for arrival in exchange:
                grad_HK = torch.zeros_like(arrival.rows_HF)
                differentiate(blocks[arrival.index], arrival.rows_HF, grad_HK)
                arrival.reply(grad_HK)
        return grad_left, grad_right, grad_att, None, None
