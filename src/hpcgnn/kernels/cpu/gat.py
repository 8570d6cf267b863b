"""GAT and GATv2 attention in C++."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64

import torch
from torch import Tensor

from hpcgnn.kernels.attention import (
    Destinations,
    GATGradients,
    GATv2Gradients,
    Projections,
    ResultGradient,
    RunningSoftmax,
    Scoring,
    Sources,
)
from hpcgnn.kernels.backend import Pieces, Rows
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.chunks import transposed
from hpcgnn.kernels.cpu.library import (
    ThreadParts,
    dropout_of,
    edges,
    function,
    is_double,
    kind,
    matrix,
    optional_matrix,
    pointer,
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
        kind(sources.z),
        matrix(sources.z),
        matrix(sources.s),
        matrix(t),
        matrix(softmax.row_max),
        matrix(softmax.row_sum),
        matrix(softmax.out),
        optional_matrix(softmax.start),
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
        kind(sources.z),
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
        c_int64(grads.self_loops),
        c_int64(grads.adds),
    )
    grad_t_parts.add_up()
    edge_parts.add_up()


def gatv2_forward(
    block: Block,
    inputs: Projections,
    softmax: RunningSoftmax,
    scoring: Scoring,
    rows: tuple[int, int],
) -> None:
    heads, channels = inputs.att.shape
    function("gatv2_forward")(
        ctypes.byref(edges(block, rows)),
        is_double(inputs.zl),
        matrix(inputs.zl),
        matrix(inputs.zr),
        pointer(inputs.att),
        matrix(softmax.row_max),
        matrix(softmax.row_sum),
        matrix(softmax.out),
        optional_matrix(scoring.edge_weight),
        c_int64(heads),
        c_int64(channels),
        c_double(scoring.slope),
        dropout_of(scoring.dropout, reverse=False),
    )


def gatv2_backward(
    block: Block,
    inputs: Projections,
    result: ResultGradient,
    grads: GATv2Gradients,
    scoring: Scoring,
    pieces: Pieces,
) -> None:
    for rows in pieces(block):
        _by_destination(block, inputs, result, grads, scoring, rows)
    with_features = scoring.edge_weight is not None
    turned = transposed(block, inputs.zr.shape[0], with_features=with_features)
    for rows in pieces(turned):
        _by_source(turned, inputs, result, grads, scoring, rows)


def _by_destination(
    block: Block,
    inputs: Projections,
    result: ResultGradient,
    grads: GATv2Gradients,
    scoring: Scoring,
    rows: Rows,
) -> None:
    (heads, channels), given = inputs.att.shape, edges(block, rows)
    grad_edge = None if scoring.edge_weight is None else grads.edge_weight
    att_parts = ThreadParts(grads.att, given, inputs.zl.dtype)
    edge_parts = ThreadParts(grad_edge, given, inputs.zl.dtype)
    function("gatv2_backward_rows")(
        ctypes.byref(given),
        is_double(inputs.zl),
        matrix(inputs.zl),
        matrix(inputs.zr),
        matrix(result.g),
        matrix(result.lse),
        matrix(result.d),
        matrix(grads.zr),
        optional_matrix(scoring.edge_weight),
        att_parts.first,
        edge_parts.first,
        pointer(inputs.att),
        c_int64(heads),
        c_int64(channels),
        att_parts.step,
        edge_parts.step,
        c_double(scoring.slope),
        dropout_of(scoring.dropout, reverse=False),
    )
    att_parts.add_up()
    edge_parts.add_up()


def _by_source(
    turned: Block,
    inputs: Projections,
    result: ResultGradient,
    grads: GATv2Gradients,
    scoring: Scoring,
    rows: Rows,
) -> None:
    heads, channels = inputs.att.shape
    function("gatv2_backward_columns")(
        ctypes.byref(edges(turned, rows)),
        is_double(inputs.zl),
        matrix(inputs.zl),
        matrix(inputs.zr),
        matrix(result.g),
        matrix(result.lse),
        matrix(result.d),
        matrix(grads.zl),
        optional_matrix(scoring.edge_weight),
        pointer(inputs.att),
        c_int64(heads),
        c_int64(channels),
        c_double(scoring.slope),
        dropout_of(scoring.dropout, reverse=True),
    )
