"""Fused graph attention over the ring (Veličković et al. 2018) with a backward without re-fetch.

    l_ij = s_j + t_i + e_ij,  u = LeakyReLU(l),  a_ij = softmax_i(u_ij),  o_i = sum_j a_ij z_j

with z = x W^T, s_j = <z_j, source>, t_i = <z_i, target>, per head. Forward streams (z_j, s_j) of
boundary nodes; softmax runs on as blocks arrive. Backward streams g_i = dL/do_i, t_i, the
log-sum-exp and D_i = <g_i, o_i> of boundary *destinations* to the owners of the sources, who
compute dL/dz_j = sum_i a_ij g_i and dL/ds_j there. Only the per-head scalars dL/dt_i travel back.
In mode `sar` z is computed again in backward, but of the newest layer: `Execution.newest`.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn import kernels
from hpcgnn.graph.features import NodeFeatures
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.block import Block
from hpcgnn.sar.attention import (
    AttentionSettings,
    edge_dropout,
    exchange_halo_ids,
    local_blocks,
    normalised,
)
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.hubs import Returned, RowSums, SoftmaxSums, Totals
from hpcgnn.sar.products import (
    RowLayout,
    gathered,
    head_matrix,
    head_products,
    head_scores,
    product,
    product_type,
    refill,
    shell,
    sum_of_products,
    summed,
    weight_gradient,
)
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.stream import Payload, Progress, return_gradients, stream, stream_and_return, work

_LARGE = 1 << 26  # bytes of an array of all heads on one rank
_WIDE = 32  # channels of a head


def attention(
    graph: PartitionedGraph,
    x: NodeFeatures,
    weight_KF: Tensor,
    source_HC: Tensor,
    target_HC: Tensor,
    edge_HD: Tensor | None,
    bias_K: Tensor | None,
    settings: AttentionSettings,
    then: ReluDropout | None = None,
) -> Tensor:
    """Attention output plus bias, `[n, H * C]`; nodes without in-edges get the bias; collective.

    Args:
        edge_HD: scores of edge features, `e_ij = <edge_h, features_ij>`; None without.
        then: what is done to the output, whose result is then kept for backward in its place.
    """
    check_rows(graph, x, who="attention", width=weight_KF.shape[1], constant=True)
    dense = x if isinstance(x, Tensor) else None
    result: Tensor = _Attention.apply(
        dense,
        weight_KF,
        source_HC,
        target_HC,
        edge_HD,
        bias_K,
        x,
        graph,
        settings,
        then,
        torch.is_grad_enabled(),
    )
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        dense: Tensor | None,
        weight_KF: Tensor,
        source_HC: Tensor,
        target_HC: Tensor,
        edge_HD: Tensor | None,
        bias_K: Tensor | None,
        x: NodeFeatures,
        graph: PartitionedGraph,
        settings: AttentionSettings,
        then: ReluDropout | None,
        has_backward: bool,
    ) -> Tensor:
        ctx.product_dtype = product_type(graph.node_ids.device)
        if settings.dropout:
            graph.execution.mask_key(settings.layer)
        graph.execution.newest = None  # before this layer's product takes its place
        with torch.autocast(graph.node_ids.device.type, enabled=False):
            z_NK = gathered(product(x, weight_KF, ctx.product_dtype), ctx.product_dtype)
            s_NH, t_NH = head_scores(z_NK, source_HC, target_HC)
            run = ForwardPass(graph, settings, ctx.product_dtype, z_NK, s_NH, t_NH, edge_HD)
            run.go(graph.epoch)
            out_NK, lse_NH = normalised(run.row_max_NH, run.row_sum_NH, run.out_NK, bias_K)
            out_NK = summed(out_NK, z_NK.dtype)
        if then is not None:
            then.apply(out_NK, out_NK)
        ctx.then = then
        ctx.x, held = shell(None if isinstance(x, Tensor) else x)
        ctx.num_held = len(held)
        ctx.graph, ctx.settings, ctx.keeps = graph, settings, run.kept is not None
        ctx.epoch = graph.epoch
        keeps_z = run.kept is not None or graph.execution.forgets
        if not keeps_z and has_backward:
            graph.execution.newest, ctx.newest = z_NK, weakref.ref(z_NK)
        graph.execution.keep_exact(s_NH, t_NH, lse_NH, *(run.kept or ()))
        ctx.save_for_backward(
            dense,
            weight_KF,
            source_HC,
            target_HC,
            edge_HD,
            bias_K,
            s_NH,
            t_NH,
            out_NK,
            lse_NH,
            z_NK if keeps_z else None,
            *held,
            *(run.kept or ()),
        )
        return out_NK

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (
            dense,
            weight_KF,
            source_HC,
            target_HC,
            edge_HD,
            bias_K,
            s_NH,
            t_NH,
            out_NK,
            lse_NH,
            z_NK,
            *kept,
        ) = ctx.saved_tensors
        held, kept = kept[: ctx.num_held], kept[ctx.num_held :]
        x: NodeFeatures = dense if ctx.x is None else refill(ctx.x, held)
        z_NK = ctx.newest() if z_NK is None else z_NK
        found = Gradients(
            x, weight_KF, source_HC, target_HC, edge_HD, bias_K, with_x=ctx.needs_input_grad[0]
        )
        groups = [range(s_NH.shape[1])]
        if z_NK is None and not ctx.keeps:
            groups = head_groups(ctx.graph, *source_HC.shape)
        grad_NK = grads[0].contiguous()
        for heads in groups:
            part, columns = slice(heads.start, heads.stop), found.columns(heads)
            g_NK, bias = grad_NK[:, columns], None if bias_K is None else bias_K[columns]
            if ctx.then is None:
                d_NH = head_products(g_NK, out_NK[:, columns], len(heads), bias)
            else:
                g_NK = ctx.then.gradient(out_NK[:, columns], g_NK)
                d_NH = _products_before(ctx.then, g_NK, out_NK[:, columns], len(heads), bias)
            if z_NK is None:
                z_NK = product(x, weight_KF[columns], ctx.product_dtype)
                z_NK = gathered(z_NK, ctx.product_dtype)
            first = ctx.settings.first_head + heads.start
            run = BackwardPass(
                ctx.graph,
                replace(ctx.settings, heads=len(heads), first_head=first),
                ctx.product_dtype,
                ctx.epoch,
                g_NK,
                d_NH,
                z_NK,
                s_NH[:, part],
                t_NH[:, part],
                lse_NH[:, part],
                None if edge_HD is None else edge_HD[part],
            )
            z_NK = None
            if ctx.keeps:
                run.at_destinations(kept)
            else:
                run.at_sources()
            found.add_bias(heads, g_NK)
            del g_NK
            found.add(heads, run, ctx.product_dtype)
            del run
        return (
            found.x,
            found.weight,
            found.source,
            found.target,
            found.edge,
            found.bias,
            None,
            None,
            None,
            None,
            None,
        )


class Gradients:
    """Gradients of a layer, to which groups of heads add theirs."""

    def __init__(
        self,
        x: NodeFeatures,
        weight_KF: Tensor,
        source_HC: Tensor,
        target_HC: Tensor,
        edge_HD: Tensor | None,
        bias_K: Tensor | None,
        *,
        with_x: bool,
    ) -> None:
        self.inputs, self.weight_KF = x, weight_KF
        self.vectors, self.channels = (source_HC, target_HC), source_HC.shape[1]
        self.weight = torch.empty_like(weight_KF)
        self.source, self.target = torch.empty_like(source_HC), torch.empty_like(target_HC)
        self.edge = None if edge_HD is None else torch.empty_like(edge_HD)
        self.bias = None if bias_K is None else torch.empty_like(bias_K)
        self.x: Tensor | None = None
        self.with_x = with_x and isinstance(x, Tensor)

    def columns(self, heads: range) -> slice:
        """Theirs among those of all."""
        return slice(heads.start * self.channels, heads.stop * self.channels)

    def add_bias(self, heads: range, g_NK: Tensor) -> None:
        if self.bias is not None:
            columns = self.columns(heads)
            self.bias[columns] = g_NK.sum(dim=0, dtype=self.bias.dtype)

    def add(self, heads: range, run: BackwardPass, dtype: torch.dtype | None) -> None:
        """What a pass over the edges found for these heads; `dtype` of products."""
        part, columns = slice(heads.start, heads.stop), self.columns(heads)
        source_HC, target_HC = (vector_HC[part] for vector_HC in self.vectors)
        grad_z, self.source[part], self.target[part] = run.finished(source_HC, target_HC)
        if self.edge is not None and run.grad_edge_HD is not None:
            self.edge[part] = run.grad_edge_HD
        self.weight[columns] = weight_gradient(self.inputs, grad_z, dtype)
        if not self.with_x or not isinstance(self.inputs, Tensor):
            return
        weight = self.weight_KF[columns]
        if self.x is None:
            self.x = product(grad_z, weight.t(), dtype).to(self.inputs.dtype)
        elif dtype is None and self.x.dtype == grad_z.dtype:
            self.x.addmm_(grad_z, weight)
        else:
            self.x += product(grad_z, weight.t(), dtype)


def head_groups(graph: PartitionedGraph, heads: int, channels: int) -> list[range]:
    """Heads whose gradients are computed together: all, or one after the other.

    By numbers that all ranks know, since they exchange rows for each group.
    """
    apart = graph.node_ids.device.type == "cpu" and heads_apart(
        graph.num_nodes / graph.comm.size, heads, channels
    )
    return [range(head, head + 1) for head in range(heads)] if apart else [range(heads)]


def heads_apart(nodes: float, heads: int, channels: int) -> bool:
    """Whether arrays of all heads are so large that z, g and grad z of one at a time spare much.

    Args:
        nodes: of a rank, on average.
    """
    return 4 * nodes * heads * channels >= _LARGE and channels >= _WIDE


def _products_before(
    then: ReluDropout, g_NK: Tensor, y_NK: Tensor, heads: int, bias_K: Tensor | None
) -> Tensor:
    """`<g, o - bias>` per node and head; where g is not 0, `then` made y of o = (1 - p) y."""
    kept = 1 - then.p
    return head_products(g_NK, y_NK, heads, None if bias_K is None else bias_K / kept).mul_(kept)


def _diagonal_blocks(z_NK: Tensor, grad_scores_NH: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_n grad[n, h] z[n, h, :]` of both halves of the scores: `[H, C]` each."""
    heads = grad_scores_NH.shape[1] // 2
    all_HHC = sum_of_products(grad_scores_NH, z_NK).view(2, heads, heads, -1)
    source_HC, target_HC = all_HHC.diagonal(dim1=1, dim2=2).transpose(1, 2).contiguous()
    return source_HC, target_HC


class ForwardPass:
    """One pass over all blocks, local ones first."""

    def __init__(
        self,
        graph: PartitionedGraph,
        settings: AttentionSettings,
        product_dtype: torch.dtype | None,
        z_NK: Tensor,
        s_NH: Tensor,
        t_NH: Tensor,
        edge_HD: Tensor | None,
    ) -> None:
        self.graph, self.settings = graph, settings
        self.product_dtype = product_dtype
        self.z_NK, self.s_NH, self.t_NH, self.edge_HD = z_NK, s_NH, t_NH, edge_HD
        self.kept: list[Tensor] | None = None if graph.mode == "sar" else []

    def _begin(self) -> list[Block]:
        """Where the softmax starts, and the blocks without messages that are still to be added.

        Self-loops that count as they are need no pass over them: it starts there.
        """
        settings, z_NK = self.settings, self.z_NK
        local = local_blocks(self.graph, self.graph.in_edges, settings.self_loops)
        plain = settings.self_loops and not settings.dropout and self.edge_HD is None
        if plain and z_NK.device.type == "cpu":  # a GPU would wait to know whether all are finite
            self.row_max_NH = functional.leaky_relu(self.s_NH + self.t_NH, settings.slope)
            if bool(self.row_max_NH.isfinite().all()):
                self.row_sum_NH = torch.ones_like(self.t_NH)
                self.out_NK = z_NK.to(self.t_NH.dtype, copy=True)
                return local[1:]
        self.row_max_NH = torch.full_like(self.t_NH, -torch.inf)
        self.row_sum_NH = torch.zeros_like(self.t_NH)
        self.out_NK = torch.zeros_like(z_NK, dtype=self.t_NH.dtype)
        return local

    @property
    def _softmax(self) -> kernels.RunningSoftmax:
        return kernels.RunningSoftmax(self.row_max_NH, self.row_sum_NH, self.out_NK)

    def go(self, epoch: int) -> None:
        graph, edges = self.graph, self.graph.in_edges
        exchange_halo_ids(graph, edges, self.settings)
        local = self._begin()
        for block, (z_MK, s_MH), progress in stream(
            graph,
            edges,
            Payload(
                (self.z_NK,), self.product_dtype or self.z_NK.dtype, (self.s_NH,), gathered=True
            ),
            where="attention forward",
            local=local,
            kept=self.kept,
            sums=SoftmaxSums(self._softmax),
        ):
            for rows in work(block, edges.num_parts):
                self._add(block, z_MK, s_MH, rows, epoch)
                progress()

    def _add(
        self, block: Block, z_MK: Tensor, s_MH: Tensor, rows: tuple[int, int], epoch: int
    ) -> None:
        dropout = edge_dropout(self.graph, self.graph.in_edges, block, self.settings, epoch)
        kernels.gat_forward(
            block,
            kernels.Sources(z_MK, s_MH),
            self.t_NH,
            self._softmax,
            kernels.Scoring(self.settings.slope, dropout, self.edge_HD),
            rows=rows,
        )


class BackwardPass:
    """Gradients of z, s, t and the edge scores."""

    def __init__(
        self,
        graph: PartitionedGraph,
        settings: AttentionSettings,
        product_dtype: torch.dtype | None,
        epoch: int,
        g_NK: Tensor,
        d_NH: Tensor,
        z_NK: Tensor,
        s_NH: Tensor,
        t_NH: Tensor,
        lse_NH: Tensor,
        edge_HD: Tensor | None,
    ) -> None:
        self.graph, self.settings, self.epoch = graph, settings, epoch
        self.g_NK = gathered(g_NK, product_dtype)
        self.d_NH, self.z_NK, self.s_NH = d_NH, z_NK, s_NH
        self.t_NH, self.lse_NH, self.edge_HD = t_NH, lse_NH, edge_HD
        self.product_dtype = product_dtype
        self.sources = kernels.Sources(z_NK, s_NH)
        self.grad_z_NK = torch.zeros_like(z_NK, dtype=s_NH.dtype)
        heads = s_NH.shape[1]
        self.grad_scores_NH = s_NH.new_zeros(len(s_NH), 2 * heads)
        self.grad_s_NH, self.grad_t_NH = self.grad_scores_NH.split(heads, dim=1)
        self._edge = Totals([] if edge_HD is None else [edge_HD])

    @property
    def grad_edge_HD(self) -> Tensor | None:
        return next(iter(self._edge.result()), None)

    def finished(self, source_HC: Tensor, target_HC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of z, scores included, and of the vectors that score it; drops z and g."""
        grad_z_NK, self.g_NK = self.grad_z_NK, self.g_NK.new_empty(0)
        z_NK = self.z_NK.to(grad_z_NK.dtype)
        grad_source, grad_target = _diagonal_blocks(z_NK, self.grad_scores_NH)
        self.z_NK = self.z_NK.new_empty(0)
        del self.sources, z_NK
        grad_z_NK.addmm_(self.grad_scores_NH, head_matrix(source_HC, target_HC).t())
        return grad_z_NK, grad_source, grad_target

    def at_sources(self) -> None:
        """Stream destinations to the owners of their sources."""
        graph, edges = self.graph, self.graph.out_edges
        exchange_halo_ids(graph, edges, self.settings)

        # Apart, since when a reply comes is a matter of chance, and rounding must not be.
        replied = Returned(edges, torch.zeros_like(self.grad_t_NH))
        here_NH = torch.zeros_like(self.grad_t_NH, dtype=torch.float64)
        scalars = (self.t_NH, self.lse_NH, self.d_NH)
        for block, (g_MK, t_MH, lse_MH, d_MH), grad_t_MH, progress in stream_and_return(
            graph,
            edges,
            Payload((self.g_NK,), self.product_dtype or self.g_NK.dtype, scalars, gathered=True),
            here_NH,
            replied.accept,
            where="attention backward",
            local=local_blocks(graph, edges, self.settings.self_loops),
            sums=RowSums(self.grad_z_NK, self.grad_s_NH),
        ):
            destinations = kernels.Destinations(g_MK, t_MH, lse_MH, d_MH)
            sums = kernels.ThreadSums(grad_t_MH)
            for rows in work(block, edges.num_parts):
                self._source_side(block, destinations, sums.parts, rows)
                progress()
            sums.add_up()
        replied.end()
        self.grad_t_NH += here_NH + replied.matrices[0]

    def _source_side(
        self,
        block: Block,
        destinations: kernels.Destinations,
        grad_t: Tensor,
        rows: tuple[int, int],
    ) -> None:
        dropout = edge_dropout(
            self.graph, self.graph.out_edges, block, self.settings, self.epoch, reverse=True
        )
        kernels.gat_backward(
            block,
            destinations,
            self.sources,
            kernels.GATGradients(self.grad_z_NK, self.grad_s_NH, grad_t, *self._edge.parts),
            kernels.Scoring(self.settings.slope, dropout, self.edge_HD),
            rows=rows,
        )
        self._edge.added()

    def at_destinations(self, kept: list[Tensor]) -> None:
        """Where remote z and s were kept: compute their gradients here and send them back."""
        graph, edges, width = self.graph, self.graph.in_edges, self.g_NK.shape[1]
        here = kernels.Destinations(self.g_NK, self.t_NH, self.lse_NH, self.d_NH)
        there_NH = torch.zeros_like(self.grad_t_NH, dtype=torch.float64)
        sums = kernels.ThreadSums(there_NH)
        dtype, on_gpu = self.product_dtype or self.g_NK.dtype, self.g_NK.device.type == "cuda"
        layout = RowLayout(width, self.s_NH.shape[1], dtype, on_gpu)

        def produce(index: int, block: Block, out_MW: Tensor) -> None:
            rows_MW = kept[index]
            turned = kernels.transposed(block, graph.num_local_nodes, with_features=True)
            grad_z_MK = self.grad_z_NK.new_zeros(len(out_MW), width)
            grad_s_MH = layout.scalars(out_MW)
            dropout = edge_dropout(graph, edges, block, self.settings, self.epoch)
            kernels.gat_backward(
                turned,
                here,
                kernels.Sources(gathered(layout.features(rows_MW), None), layout.scalars(rows_MW)),
                kernels.GATGradients(grad_z_MK, grad_s_MH, sums.parts, *self._edge.parts),
                kernels.Scoring(self.settings.slope, dropout, self.edge_HD),
            )
            self._edge.added()
            layout.features(out_MW)[:] = grad_z_MK

        returned = Returned(edges, self.grad_z_NK, self.grad_s_NH)

        def accept(rows: Tensor, grad_MW: Tensor) -> None:
            returned.accept(rows, layout.features(grad_MW), layout.scalars(grad_MW))

        def differentiate_here(progress: Progress) -> None:
            for block in local_blocks(graph, graph.out_edges, self.settings.self_loops):
                self._source_side(block, here, self.grad_t_NH, (0, block.num_rows))
                progress()

        return_gradients(
            graph,
            edges,
            layout.columns,
            layout.dtype,
            produce,
            accept,
            where="attention backward",
            first=differentiate_here,
        )
        returned.end()
        sums.add_up()
        self.grad_t_NH += there_NH
