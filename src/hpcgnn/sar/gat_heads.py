"""Graph attention with averaged heads, computed one head at a time.

    o_i = 1/H sum_h o_i^h,  with o^h as in `sar.gat`

If the heads' outputs together are wider than the layer's input, they would determine the memory of
the whole model. Hence each head's product, attention and gradients are computed alone, C columns at
a time instead of H * C, forward and backward. What backward needs of a head (its product, the
softmax's sums, D_i^h = <g_i, o_i^h> / H) is computed again by that head's forward pass, for which
its boundary rows are sent once more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hpcgnn.graph.features import NodeFeatures
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.attention import AttentionSettings, normalised
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.checks import check_rows
from hpcgnn.sar.gat_gradients import AfterEdges, Gradients
from hpcgnn.sar.gat_passes import BackwardPass, ForwardPass
from hpcgnn.sar.products import (
    gathered,
    head_products,
    head_scores,
    product,
    product_type,
    refill,
    shell,
    summed,
)


def one_at_a_time(mode: str, *, heads: int, channels: int, inputs: int) -> bool:
    """Return whether a layer with averaged heads computes them one at a time.

    That costs another forward pass of the layer, so it is done only where it lowers the peak memory
    much: all heads' outputs are wider than 5/4 of the layer's input. Modes that keep remote rows
    would have to keep those of all heads.
    """
    return mode == "sar" and heads > 1 and 4 * heads * channels > 5 * inputs


def averaged_attention(
    graph: PartitionedGraph,
    x: NodeFeatures,
    weight_KF: Tensor,
    source_HC: Tensor,
    target_HC: Tensor,
    edge_HD: Tensor | None,
    settings: AttentionSettings,
) -> Tensor:
    """Return the mean over heads of the attention output, `[n, C]`, in mode `sar`; collective.

    Args:
        edge_HD: vectors of edge feature scores, `e_ij = <edge_h, features_ij>`; None without.
    """
    check_rows(graph, x, who="attention", width=weight_KF.shape[1], constant=True)
    dense = x if isinstance(x, Tensor) else None
    result: Tensor = _AveragedAttention.apply(
        dense, weight_KF, source_HC, target_HC, edge_HD, x, graph, settings
    )
    return result


class _AveragedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        dense: Tensor | None,
        weight_KF: Tensor,
        source_HC: Tensor,
        target_HC: Tensor,
        edge_HD: Tensor | None,
        x: NodeFeatures,
        graph: PartitionedGraph,
        settings: AttentionSettings,
    ) -> Tensor:
        if settings.dropout:
            graph.execution.mask_key(settings.layer)
        dtype = product_type(graph.node_ids.device)
        layer = _Layer(
            graph, settings, graph.epoch, dtype, x, weight_KF, source_HC, target_HC, edge_HD
        )
        out_NC = source_HC.new_zeros(x.shape[0], source_HC.shape[1])
        with torch.autocast(graph.node_ids.device.type, enabled=False):
            for head in range(settings.heads):
                run, of_head_NC, _ = layer.forward(head)
                rows_dtype = run.z_NK.dtype
                out_NC += of_head_NC
                del run, of_head_NC
        ctx.x, held = shell(None if isinstance(x, Tensor) else x)
        ctx.graph, ctx.settings, ctx.epoch = graph, settings, graph.epoch
        ctx.product_dtype = dtype
        ctx.save_for_backward(dense, weight_KF, source_HC, target_HC, edge_HD, *held)
        return summed(out_NC.div_(settings.heads), rows_dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dense, weight_KF, source_HC, target_HC, edge_HD, *held = ctx.saved_tensors
        x: NodeFeatures = dense if ctx.x is None else refill(ctx.x, held)
        layer = _Layer(
            ctx.graph,
            ctx.settings,
            ctx.epoch,
            ctx.product_dtype,
            x,
            weight_KF,
            source_HC,
            target_HC,
            edge_HD,
        )
        found = Gradients(
            x,
            weight_KF,
            source_HC,
            target_HC,
            edge_HD,
            None,
            ctx.graph.execution.arrays,
            with_x=ctx.needs_input_grad[0],
        )
        g_NC = grads[0] / ctx.settings.heads
        with torch.autocast(ctx.graph.node_ids.device.type, enabled=False):
            for head in range(ctx.settings.heads):
                run = layer.backward(head, g_NC)
                AfterEdges(found, range(head, head + 1), run, ctx.product_dtype).finish()
                del run
        return (
            found.x,
            found.weight,
            found.source,
            found.target,
            found.edge,
            None,
            None,
            None,
        )


class _Layer:
    """The input and weights of a layer that is computed one head at a time."""

    def __init__(
        self,
        graph: PartitionedGraph,
        settings: AttentionSettings,
        epoch: int,
        product_dtype: torch.dtype | None,
        x: NodeFeatures,
        weight_KF: Tensor,
        source_HC: Tensor,
        target_HC: Tensor,
        edge_HD: Tensor | None,
    ) -> None:
        self.graph, self.settings, self.epoch, self.x = graph, settings, epoch, x
        self.product_dtype = product_dtype
        self.weight_HCF = weight_KF.view(settings.heads, -1, weight_KF.shape[1])
        self.source_HC, self.target_HC, self.edge_HD = source_HC, target_HC, edge_HD

    def one(self, head: int) -> AttentionSettings:
        return replace(self.settings, heads=1, first_head=head)

    def edge(self, head: int) -> Tensor | None:
        return None if self.edge_HD is None else self.edge_HD[head : head + 1]

    def vectors(self, head: int) -> tuple[Tensor, Tensor]:
        return self.source_HC[head : head + 1], self.target_HC[head : head + 1]

    def forward(self, head: int) -> tuple[ForwardPass, Tensor, Tensor]:
        """Return the pass, and the head's output `[n, C]` in the accumulation dtype and log-sum-exp
        `[n, 1]`."""
        self.graph.execution.newest = None
        z_NC = product(self.x, self.weight_HCF[head], self.product_dtype)
        z_NC = gathered(z_NC, self.product_dtype)
        s_N1, t_N1 = (scores.contiguous() for scores in head_scores(z_NC, *self.vectors(head)))
        run = ForwardPass(
            self.graph, self.one(head), self.product_dtype, z_NC, s_N1, t_N1, self.edge(head)
        )
        run.go(self.epoch)
        return run, *normalised(run.softmax, None, self.graph.node_ids)

    def backward(self, head: int, g_NC: Tensor) -> BackwardPass:
        """Run the backward pass of one head; `g_NC` is the gradient of its output."""
        forward, out_NC, lse_N1 = self.forward(head)
        d_N1 = head_products(g_NC, out_NC.to(g_NC.dtype), 1)
        z_NC, s_N1, t_N1 = forward.z_NK, forward.s_NH, forward.t_NH
        del forward, out_NC
        run = BackwardPass(
            self.graph,
            self.one(head),
            self.product_dtype,
            self.epoch,
            g_NC,
            d_N1,
            z_NC,
            s_N1,
            t_N1,
            lse_N1,
            self.edge(head),
        )
        del z_NC
        run.at_sources()
        return run
