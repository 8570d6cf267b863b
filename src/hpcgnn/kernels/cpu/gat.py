"""GAT attention in C++."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64

import torch
from torch import Tensor

from hpcgnn.kernels.attention import (
    Destinations,
    GATGradients,
    RunningSoftmax,
    Scoring,
    Sources,
)
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.cpu.library import (
    ThreadParts,
    dropout_of,
    edges,
    function,
    is_double,
    matrix,
    optional_matrix,
)


def gat_forward(
    block: Block,
    sources: Sources,
    t: Tensor,
    softmax: RunningSoftmax,
    scoring: Scoring,
    rows: tuple[int, int],
) -> None:
    heads = sources.s.shape[1]
    function("gat_forward")(
        ctypes.byref(edges(block, rows)),
        is_double(sources.z),
        matrix(sources.z),
        matrix(sources.s),
        matrix(t),
        matrix(softmax.row_max),
        matrix(softmax.row_sum),
        matrix(softmax.out),
        optional_matrix(scoring.edge_weight),
        c_int64(heads),
        c_int64(sources.z.shape[1] // heads),
        c_double(scoring.slope),
        dropout_of(scoring.dropout, reverse=False),
    )


def gat_backward(
    block: Block,
    destinations: Destinations,
    sources: Sources,
    grads: GATGradients,
    scoring: Scoring,
    rows: tuple[int, int],
) -> None:
    heads, given = sources.s.shape[1], edges(block, rows)
    if grads.t is not None and grads.t.dim() == 3:
        given.threads = len(grads.t)
    grad_t_parts = ThreadParts(grads.t, given, torch.float64)
    edge_parts = ThreadParts(grads.edge_weight, given)
    function("gat_backward")(
        ctypes.byref(given),
        is_double(sources.z),
        matrix(destinations.g),
        matrix(destinations.t),
        matrix(destinations.lse),
        matrix(destinations.d),
        matrix(sources.z),
        matrix(sources.s),
        matrix(grads.z),
        matrix(grads.s),
        grad_t_parts.first,
        grad_t_parts.step,
        optional_matrix(scoring.edge_weight),
        edge_parts.first,
        edge_parts.step,
        c_int64(heads),
        c_int64(sources.z.shape[1] // heads),
        c_double(scoring.slope),
        dropout_of(scoring.dropout, reverse=True),
    )
    grad_t_parts.add_up()
    edge_parts.add_up()
