"""GAT attention in C++."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.kernels.cpu.library import (
    ThreadParts,
    dropout_of,
    edges,
    function,
    is_double,
    matrix,
    optional_matrix,
)

if TYPE_CHECKING:
    from hpcgnn.kernels.block import Block
    from hpcgnn.kernels.masks import EdgeDropout


def gat_forward(
    block: Block,
    z: Tensor,
    s: Tensor,
    t: Tensor,
    top: Tensor,
    total: Tensor,
    out: Tensor,
    slope: float,
    dropout: EdgeDropout | None,
    edge_vector: Tensor | None,
    rows: tuple[int, int],
) -> None:
    heads = s.shape[1]
    function("gat_forward")(
        ctypes.byref(edges(block, rows)),
        is_double(z),
        *map(matrix, (z, s, t, top, total, out)),
        optional_matrix(edge_vector),
        c_int64(heads),
        c_int64(z.shape[1] // heads),
        c_double(slope),
        dropout_of(dropout, reverse=False),
    )


def gat_backward(
    block: Block,
    g: Tensor,
    t: Tensor,
    lse: Tensor,
    d: Tensor,
    z: Tensor,
    s: Tensor,
    grad_z: Tensor,
    grad_s: Tensor,
    grad_t: Tensor | None,
    slope: float,
    dropout: EdgeDropout | None,
    edge_vector: Tensor | None,
    grad_edge_vector: Tensor | None,
    rows: tuple[int, int],
) -> None:
    heads, given = s.shape[1], edges(block, rows)
    grad_t_parts = ThreadParts(grad_t, given, torch.float64)
    vector_parts = ThreadParts(grad_edge_vector, given)
    function("gat_backward")(
        ctypes.byref(given),
        is_double(z),
        *map(matrix, (g, t, lse, d, z, s, grad_z, grad_s)),
        grad_t_parts.first,
        grad_t_parts.step,
        optional_matrix(edge_vector),
        vector_parts.first,
        vector_parts.step,
        c_int64(heads),
        c_int64(z.shape[1] // heads),
        c_double(slope),
        dropout_of(dropout, reverse=True),
    )
    grad_t_parts.add_up()
    vector_parts.add_up()
