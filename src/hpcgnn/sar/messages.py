"""Messages that a user writes in torch, streamed over the ring and rematerialized in backward.

Forward runs `message` without autograd, piece by piece, and keeps only reduced rows. Backward
fetches remote rows again (mode `sar`), runs each piece under autograd, and sends the gradients of
remote rows back to their owners (SAR, Mostafa 2022, section 3.3).

Edge states are rows of the destination's rank: neither they nor their gradients are ever sent. For
backward, a layer keeps the states that it read, a row per edge; what it computes from these to get
the new states is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.checks import HALF_PRECISION
from hpcgnn.sar.attention import AttentionSettings, exchange_halo_ids
from hpcgnn.sar.autograd import first_order
from hpcgnn.sar.captured import Originals
from hpcgnn.sar.checks import check_edge_rows, check_rows
from hpcgnn.sar.message_pass import MessagePass, MessageSettings
from hpcgnn.sar.products import wire_type


def edge_features(graph: PartitionedGraph) -> Tensor | None:
    """Return the features of all edges into local nodes, `[E, D]`, in the order of messages."""
    rows = [block.features for block in graph.in_edges.blocks if block.features is not None]
    return torch.cat(rows) if rows else None


def propagate(
    graph: PartitionedGraph,
    x: Tensor,
    settings: MessageSettings,
    parameters: Sequence[Tensor],
    features: Tensor | None = None,
    *,
    targets: Tensor | None = None,
) -> Tensor:
    """Return reduced messages `[n, len(aggr) * G]`; collective.

    Args:
        x: `[n, F]`, the rows that messages read for their sources and destinations.
        parameters: every tensor that `message` uses and that needs a gradient.
        features: `[E, D]`, edge features to use (and to differentiate) instead of the graph's.
        targets: `[n, T]`, rows that messages read for their destinations instead of `x`.
    """
    return _propagate(graph, x, targets, features, settings, parameters)[0]


def propagate_states(
    graph: PartitionedGraph,
    x: Tensor,
    states: Tensor,
    settings: MessageSettings,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return reduced messages `[n, len(aggr) * G]` and new edge states `[E, B]`; collective.

    Args:
        states: `[E, D]`, rows of the edges into local nodes in the order of `edge_features`.
    """
    check_edge_rows(graph, states, who="edge states")
    states = states.float() if states.dtype in HALF_PRECISION else states
    result = _propagate(graph, x, None, states, replace(settings, states=True), parameters)
    return cast(tuple[Tensor, Tensor], result)


def _propagate(
    graph: PartitionedGraph,
    x_NF: Tensor,
    y_NG: Tensor | None,
    edges_ED: Tensor | None,
    settings: MessageSettings,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Tensor | None]:
    check_rows(graph, x_NF, who="messages")
    x_NF = x_NF.float() if x_NF.dtype in HALF_PRECISION else x_NF
    if y_NG is not None:
        check_rows(graph, y_NG, who="messages")
        y_NG = y_NG.to(x_NF.dtype)
    dropped = AttentionSettings(settings.heads, dropout=settings.dropout, layer=settings.layer)
    exchange_halo_ids(graph, graph.in_edges, dropped)
    run = MessagePass(graph, settings, wire_type(x_NF))
    with torch.autocast(x_NF.device.type, enabled=False):
        run.forward(x_NF, y_NG, edges_ED, parameters)
        result: tuple[Tensor, Tensor | None] = _Propagate.apply(
            run, x_NF, y_NG, edges_ED, len(parameters), *parameters, *run.finder.found.values()
        )
    return result


class _Propagate(torch.autograd.Function):
    """Connects the result of a pass to autograd, which holds all arrays until backward."""

    @staticmethod
    def forward(
        ctx: Any,
        run: MessagePass,
        x_NF: Tensor,
        y_NG: Tensor | None,
        edges_ED: Tensor | None,
        num_parameters: int,
        *used: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        out_NG, state_ED, attributes, kept = run.outcome.pop()
        states = [reduction.state() for reduction in run.reductions]
        run.finder.found = {}
        ctx.run, ctx.num_parameters = run, num_parameters
        execution = run.graph.execution
        ctx.originals = Originals(used, attributes)
        groups = [list(used), attributes, kept, *states]
        ctx.sizes = [len(group) for group in groups]
        compared = (x_NF, y_NG, edges_ED) if {"max", "min"} & {*run.settings.aggr} else ()
        execution.keep_exact(*compared, *(t for group in groups for t in group))
        ctx.save_for_backward(x_NF, y_NG, edges_ED, *(t for group in groups for t in group))
        ctx.set_materialize_grads(False)
        return out_NG, state_ED

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x_NF, y_NG, edges_ED, *rest = ctx.saved_tensors
        groups = []
        for size in ctx.sizes:
            groups.append(rest[:size])
            rest = rest[size:]
        used, attributes, kept, *states = groups
        used, attributes = ctx.originals.of(used, attributes)
        run = copy(ctx.run)
        run.reductions = [copy(reduction) for reduction in run.reductions]
        for reduction, state in zip(run.reductions, states, strict=True):
            reduction.restore(state)
        run.read(x_NF, y_NG, edges_ED)
        parameters, captured = used[: ctx.num_parameters], used[ctx.num_parameters :]
        with run.modes.restored(attributes):
            run.start_backward(*grads, parameters, captured)
            run.backward(kept)
        grad_y_NG = None if y_NG is None else run.grad_y_NG
        return (
            None,
            run.grad_x_NF,
            grad_y_NG,
            run.grad_edges_ED,
            None,
            *run.grad_parameters.result(),
        )
