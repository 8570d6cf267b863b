"""Fused graph attention over the ring (Veličković et al. 2018) with a backward without re-fetch.

    l_ij = s_j + t_i + e_ij,  u = LeakyReLU(l),  a_ij = softmax_i(u_ij),  o_i = sum_j a_ij z_j

with z = x W^T, s_j = <z_j, source>, t_i = <z_i, target>, per head. Forward streams (z_j, s_j) of
boundary nodes and updates a running softmax as blocks arrive. Backward streams g_i = dL/do_i, t_i,
the log-sum-exp and D_i = <g_i, o_i> of boundary *destinations* to the owners of the sources, which
compute dL/dz_j = sum_i a_ij g_i and dL/ds_j there. Only the per-head scalars dL/dt_i are returned.
In mode `sar` backward computes z again, except that of the newest layer, and that of the layer
before it if it is twice as wide: `Execution.newest`, `make_way`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcgnn.graph.features import NodeFeatures
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.attention import AttentionSettings, normalised
from hpcgnn.sar.autograd import first_order, is_own, last_saved, let_go
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.gat_gradients import AfterEdges, Gradients
from hpcgnn.sar.gat_passes import BackwardPass, ForwardPass
from hpcgnn.sar.products import ScoredProduct, product_type, refill, shell
from hpcgnn.sar.rectifier import ReluDropout
from hpcgnn.sar.stream import first_sent

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
    """Return attention output plus bias, `[n, H * C]`; collective.

    Nodes without in-edges get the bias.

    Args:
        edge_HD: vectors of edge feature scores, `e_ij = <edge_h, features_ij>`; None without.
        then: applied to the output; backward then keeps its result in place of the output.
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
        graph.execution.make_way(len(weight_KF))
        with torch.autocast(graph.node_ids.device.type, enabled=False):
            arrays = graph.execution.arrays
            product = ScoredProduct(x, weight_KF, ctx.product_dtype, arrays, source_HC, target_HC)
            z_NK, (s_NH, t_NH) = product.z_NK, product.scores
            run = ForwardPass(graph, settings, ctx.product_dtype, z_NK, s_NH, t_NH, edge_HD)
            sent, others = product.turns(first_sent(graph.in_edges))
            run.go(graph.epoch, sent, others)
            del product, sent, others
            out_NK, lse_NH = normalised(run.softmax, bias_K, graph.node_ids, then, dtype=z_NK.dtype)
        ctx.then = then
        ctx.x, held = shell(None if isinstance(x, Tensor) else x)
        ctx.num_held = len(held)
        ctx.graph, ctx.settings, ctx.keeps = graph, settings, run.kept is not None
        ctx.epoch = graph.epoch
        ctx.spares = graph.execution.kept is not None  # memory, at the cost of time
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
        saved = _Saved.of(ctx)
        found = Gradients(
            saved.x,
            saved.weight_KF,
            saved.source_HC,
            saved.target_HC,
            saved.edge_HD,
            saved.bias_K,
            ctx.graph.execution.arrays,
            with_x=ctx.needs_input_grad[0],
        )
        groups = [range(len(saved.source_HC))]
        if ctx.spares and saved.z_NK is None and not ctx.keeps:
            groups = head_groups(ctx.graph, *saved.source_HC.shape)
        in_place = is_own(grads)
        grad_NK = grads[0].contiguous()
        for heads in groups:
            columns = found.columns(heads)
            g_NK, d_NH = found.before_edges(
                heads,
                grad_NK[:, columns],
                saved.out_NK[:, columns],
                ctx.then,
                ctx.product_dtype,
                in_place=in_place,
            )
            if heads.stop == len(saved.source_HC):
                del saved.out_NK  # frees it before z takes as much memory
            after = _over_edges(ctx, saved, found, heads, g_NK, d_NH)
            del g_NK
            if in_place and heads.stop == len(saved.source_HC):
                let_go(grad_NK)
            after.finish()
            del after
        parameters = found.weight, found.source, found.target, found.edge, found.bias
        return (found.x, *parameters, *[None] * 5)


@dataclass
class _Saved:
    """What forward saved for backward; deleting an attribute frees its array."""

    x: NodeFeatures
    weight_KF: Tensor
    source_HC: Tensor
    target_HC: Tensor
    edge_HD: Tensor | None
    bias_K: Tensor | None
    s_NH: Tensor
    t_NH: Tensor
    out_NK: Tensor
    lse_NH: Tensor
    z_NK: Tensor | None  # None: to be computed again
    z_is_ours: bool  # nothing else reads z
    messages: list[Tensor]  # empty in mode sar

    @classmethod
    def of(cls, ctx: Any) -> _Saved:
        (dense, *arrays), z_is_ours = last_saved(ctx)
        layer, z_NK, rest = arrays[:9], arrays[9], arrays[10:]
        x = dense if ctx.x is None else refill(ctx.x, rest[: ctx.num_held])
        if z_NK is None:
            z_NK, z_is_ours = ctx.newest(), True
            ctx.newest = _nothing  # z is overwritten: not for a backward after one that failed
            if z_NK is ctx.graph.execution.wide:
                ctx.graph.execution.wide = None
        fields: Any = (x, *layer, z_NK, z_is_ours, rest[ctx.num_held :])
        return cls(*fields)


def _nothing() -> None:
    return None


def _over_edges(
    ctx: Any, saved: _Saved, found: Gradients, heads: range, g_NK: Tensor, d_NH: Tensor
) -> AfterEdges:
    """Run the backward pass over all edges for these heads; computes z if it was not kept."""
    part, z_NK, again = slice(heads.start, heads.stop), saved.z_NK, None
    columns = found.columns(heads)
    saved.z_NK = None
    if z_NK is None:
        arrays = ctx.graph.execution.arrays
        again = ScoredProduct(saved.x, saved.weight_KF[columns], ctx.product_dtype, arrays)
        z_NK = again.z_NK
    first = ctx.settings.first_head + heads.start
    run = BackwardPass(
        ctx.graph,
        replace(ctx.settings, heads=len(heads), first_head=first),
        ctx.product_dtype,
        ctx.epoch,
        g_NK,
        d_NH,
        z_NK,
        saved.s_NH[:, part],
        saved.t_NH[:, part],
        saved.lse_NH[:, part],
        None if saved.edge_HD is None else saved.edge_HD[part],
    )
    del z_NK
    after = AfterEdges(found, heads, run, ctx.product_dtype, overwrites_z=saved.z_is_ours)
    if ctx.keeps:
        run.at_destinations(saved.messages)
    else:
        run.at_sources(None if again is None else again.write, after.before)
    return after


def head_groups(graph: PartitionedGraph, heads: int, channels: int) -> list[range]:
    """Return groups of heads whose gradients are computed together: all heads, or one per group.

    Decided by numbers that all ranks know, since they exchange rows for each group.
    """
    apart = graph.node_ids.device.type == "cpu" and heads_apart(
        graph.num_nodes / graph.comm.size, heads, channels
    )
    return [range(head, head + 1) for head in range(heads)] if apart else [range(heads)]


def heads_apart(nodes: float, heads: int, channels: int) -> bool:
    """Return whether doing one head at a time saves much memory of z, g and the gradient of z.

    Args:
        nodes: average number of nodes per rank.
    """
    return 4 * nodes * heads * channels >= _LARGE and channels >= _WIDE
