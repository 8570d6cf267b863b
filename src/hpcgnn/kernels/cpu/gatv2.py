"""GATv2 attention in C++."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.kernels.chunks import kept
from hpcgnn.kernels.cpu.library import (
    ThreadParts,
    dropout_of,
    edges,
    function,
    is_double,
    matrix,
    optional_matrix,
    pointer,
    transpose,
)

if TYPE_CHECKING:
    from hpcgnn.kernels.block import Block
    from hpcgnn.kernels.masks import EdgeDropout


def gatv2_forward(
    block: Block,
    zl: Tensor,
    zr: Tensor,
    att: Tensor,
    top: Tensor,
    total: Tensor,
    out: Tensor,
    slope: float,
    dropout: EdgeDropout | None,
    rows: tuple[int, int],
    edge_matrix: Tensor | None = None,
) -> None:
    function("gatv2_forward")(
        ctypes.byref(edges(block, rows)),
        is_double(zl),
        *map(matrix, (zl, zr)),
        pointer(att),
        *map(matrix, (top, total, out)),
        optional_matrix(edge_matrix),
        *map(c_int64, att.shape),
        c_double(slope),
        dropout_of(dropout, reverse=False),
    )


def gatv2_backward(
    block: Block,
    zl: Tensor,
    zr: Tensor,
    att: Tensor,
    g: Tensor,
    lse: Tensor,
    d: Tensor,
    grad_zl: Tensor,
    grad_zr: Tensor,
    grad_att: Tensor,
    slope: float,
    dropout: EdgeDropout | None,
    rows: tuple[int, int],
    edge_matrix: Tensor | None = None,
    grad_edge_matrix: Tensor | None = None,
) -> None:
    given = edges(block, rows)
    att_parts, matrix_parts = ThreadParts(grad_att, given), ThreadParts(grad_edge_matrix, given)
    function("gatv2_backward_rows")(
        ctypes.byref(given),
        is_double(zl),
        *map(matrix, (zl, zr, g, lse, d, grad_zr)),
        optional_matrix(edge_matrix),
        att_parts.first,
        matrix_parts.first,
        pointer(att),
        *map(c_int64, att.shape),
        att_parts.step,
        matrix_parts.step,
        c_double(slope),
        dropout_of(dropout, reverse=False),
    )
    att_parts.add_up()
    matrix_parts.add_up()
    turned = _turned(block, rows, zr.shape[0], edge_matrix is not None)
    function("gatv2_backward_columns")(
        ctypes.byref(edges(turned, (0, turned.num_rows))),
        is_double(zl),
        *map(matrix, (zl, zr, g, lse, d, grad_zl)),
        optional_matrix(edge_matrix),
        pointer(att),
        *map(c_int64, att.shape),
        c_double(slope),
        dropout_of(dropout, reverse=True),
    )


def _turned(block: Block, rows: tuple[int, int], num_rows: int, with_features: bool) -> Block:
    """These rows of the block compressed by column; kept for the whole block."""
    if rows == (0, block.num_rows):
        name = "turned with features" if with_features else "turned"
        return kept(block, name, lambda: _transposed(block, num_rows, with_features))
    low, high = rows
    listed = block.rows
    if listed is None:
        listed = torch.arange(block.num_rows, dtype=torch.int32)
    part = replace(
        block, rows=listed[low:high], begin=block.begin[low:high], end=block.end[low:high]
    )
    return _transposed(part, num_rows, with_features)


def _transposed(block: Block, num_rows: int, with_features: bool) -> Block:
    begin, local_rows, order = transpose(block)
    return replace(
        block,
        num_columns=num_rows,
        rows=None,
        begin=begin[:-1],
        end=begin[1:],
        columns=local_rows,
        column_offset=0,
        weight=None,
        relation=None,
        features=block.features[order] if with_features and block.features is not None else None,
    )
