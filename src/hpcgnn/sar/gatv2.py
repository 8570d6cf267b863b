"""Fused dynamic attention over the ring (GATv2, Brody et al. 2022).

    l_ij = <att, LeakyReLU(zl_j + zr_i + f_ij M)>,  a_ij = softmax_i(l_ij),  o_i = sum_j a_ij zl_j

with optional edge features f_ij; f_ij M is computed edge by edge and never stored. The score needs
both rows of an edge, so the owner of a source can't compute its gradient alone: backward fetches zl
of boundary sources again (mode `sar`) and sends its gradient back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
    return_gradients,
    stream,
    stream_and_return,
    work,
)
from hpcgnn.sar.turns import Progress


def gatv2(
    graph: PartitionedGraph,
    left_NK: Tensor,
    right_NK: Tensor,
    att_HC: Tensor,
    edge_DK: Tensor | None,
    bias_K: Tensor | None,
    settings: AttentionSettings,
) -> Tensor:
    """Return attention output plus bias, `[n, H * C]`, from `zl` and `zr`; collective.

    Nodes without in-edges get the bias.

    Args:
        edge_DK: the matrix M that multiplies edge features of width D; None without.
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
        out_NK, lse_NH = normalised(softmax, bias_K, graph.node_ids, dtype=left_NK.dtype)
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
        g_NK = grads[0].contiguous()
        d_NH = head_products(g_NK, out_NK, att_HC.shape[0], bias_K)
        run = _BackwardPass(
            ctx.graph,
            ctx.settings,
            ctx.epoch,
            ctx.wire,
            kernels.Projections(left_NK, right_NK, att_HC),
            kernels.ResultGradient(g_NK, lse_NH, d_NH),
            edge_DK,
        )
        if ctx.keeps:
            run.with_kept(kept)
        else:
            run.with_fetched()
        grads_NK = (grad_NK.to(ctx.dtype) for grad_NK in (run.grad_left_NK, run.grad_right_NK))
        grad_edge = None
        if run.grad_edge_DK is not None and edge_DK is not None:
            grad_edge = run.grad_edge_DK.to(edge_DK.dtype)
        grad_bias = bias_gradient(g_NK, bias_K)
        return *grads_NK, run.grad_att_HC.to(att_HC.dtype), grad_edge, grad_bias, None, None


class _BackwardPass:
    """The gradients of both projections, the attention vectors and the edge matrix.

    They are in the accumulation dtype, those of the parameters in float64.

    Args:
        wire: dtype of the rows in messages.
        inputs: projections of local nodes, as forward read them.
        outputs: gradient of the result, with the log-sum-exp and inner products.
    """

    def __init__(
        self,
        graph: PartitionedGraph,
        settings: AttentionSettings,
        epoch: int,
        wire: torch.dtype,
        inputs: kernels.Projections,
        outputs: kernels.ResultGradient,
        edge_DK: Tensor | None,
    ) -> None:
        self.graph, self.edges, self.settings, self.epoch = graph, graph.in_edges, settings, epoch
        self.wire, self.inputs, self.outputs, self.edge_DK = wire, inputs, outputs, edge_DK
        self.dtype = sum_type(inputs.zl.dtype)
        self.grad_left_NK = torch.zeros_like(inputs.zl, dtype=self.dtype)
        self.grad_right_NK = torch.zeros_like(inputs.zr, dtype=self.dtype)
        # Float64, since any number of messages may each add a part.
        self.grad_att_HC = torch.zeros_like(inputs.att, dtype=torch.float64)
        self.grad_edge_DK: Tensor | None = None
        if edge_DK is not None:
            self.grad_edge_DK = torch.zeros_like(edge_DK, dtype=torch.float64)

    def with_kept(self, kept: list[Tensor]) -> None:
        """Compute the gradients of remote rows from kept copies, and send them to the owners."""
        returned = Returned(self.edges, self.grad_left_NK)

        def produce(index: int, block: Block, out_MK: Tensor) -> None:
            grad_MK = out_MK
            if out_MK.dtype != self.dtype:
                grad_MK = torch.zeros_like(out_MK, dtype=self.dtype)
            self._differentiate(block, readable(kept[index]), grad_MK)
            out_MK.copy_(grad_MK)

        def differentiate_here(progress: Progress) -> None:
            for block in self._local():
                self._differentiate(block, self.inputs.zl, self.grad_left_NK, progress)

        return_gradients(
            self.graph,
            self.edges,
            self.grad_left_NK.shape[1],
            self.wire,
            produce,
            returned.accept,
            where="attention backward",
            first=differentiate_here,
            sums=RowSums(self.grad_right_NK),
        )
        returned.end()

    def with_fetched(self) -> None:
        """Fetch remote rows again, a message at a time, and send their gradients back."""
        returned = Returned(self.edges, self.grad_left_NK)
        # In order: returned gradients are added after those of the local edges.
        for block, (left_MK,), grad_MK, progress in stream_and_return(
            self.graph,
            self.edges,
            Payload((self.inputs.zl,), self.wire),
            self.grad_left_NK,
            returned.accept,
            where="attention backward",
            local=self._local(),
            in_order=True,
            sums=RowSums(self.grad_right_NK),
        ):
            self._differentiate(block, left_MK, grad_MK, progress)
        returned.end()

    def _local(self) -> list[Block]:
        return local_blocks(self.graph, self.edges, self.settings.self_loops)

    def _differentiate(
        self, block: Block, left_MK: Tensor, grad_MK: Tensor, progress: Progress | None = None
    ) -> None:
        """Add what the edges of `block` contribute; for the rows that it reads, to `grad_MK`."""

        def pieces(part: Block) -> Iterator[tuple[int, int]]:
            for rows in work(part, self.edges.num_parts):
                yield rows
                if progress is not None:
                    progress()

        dropout = edge_dropout(self.graph, self.edges, block, self.settings, self.epoch)
        kernels.gatv2_backward(
            block,
            replace(self.inputs, zl=left_MK),
            self.outputs,
            kernels.GATv2Gradients(
                grad_MK, self.grad_right_NK, self.grad_att_HC, self.grad_edge_DK
            ),
            kernels.Scoring(self.settings.slope, dropout, self.edge_DK),
            pieces=pieces,
        )
