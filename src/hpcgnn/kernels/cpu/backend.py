"""The C++ kernels: sums, maxima, dropout and transposes; see `library` for how they are called."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels.backend import Parts
from hpcgnn.kernels.block import Block, RowScale
from hpcgnn.kernels.cpu.gat import gat_backward as gat_backward
from hpcgnn.kernels.cpu.gat import gat_forward as gat_forward
from hpcgnn.kernels.cpu.gat import gatv2_backward as gatv2_backward
from hpcgnn.kernels.cpu.gat import gatv2_forward as gatv2_forward
from hpcgnn.kernels.cpu.library import StreamKey, edges, function, is_double, kind, matrix, pointer
from hpcgnn.kernels.cpu.library import instruction_set as instruction_set
from hpcgnn.kernels.cpu.library import transpose as transpose
from hpcgnn.kernels.masks import Stream, Sums

_PASSED_LANES = 16  # LANES of dropout.cpp

WHOLE_BLOCKS = True


def between(
    block: Block, low: int, high: int, picked: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    count = block.num_rows if picked is None else len(picked)
    rows = torch.empty(count, dtype=torch.int32)
    begin, end = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    function("between")(
        ctypes.byref(edges(block, (0, block.num_rows))),
        c_int64(low),
        c_int64(high),
        pointer(picked),
        c_int64(count),
        pointer(rows),
        pointer(begin),
        pointer(end),
    )
    if picked is not None:
        return rows, begin, end
    kept = torch.nonzero(begin < end).flatten()
    return rows[kept], begin[kept], end[kept]


def range_rows(block: Block, most: int) -> tuple[Tensor, Tensor]:
    pointers = torch.empty(-(-block.num_columns // most) + 1, dtype=torch.int64)
    given = (ctypes.byref(edges(block, (0, block.num_rows))), c_int64(most), pointer(pointers))
    function("range_rows")(*given, pointer(None))
    rows = torch.empty(int(pointers[-1]), dtype=torch.int32)
    if len(rows):
        function("range_rows")(*given, pointer(rows))
    return rows, pointers


def spmm(
    block: Block,
    x: Tensor,
    out: Tensor,
    rows: tuple[int, int],
    adds: bool,
    scale: Tensor | None = None,
    after: RowScale | None = None,
) -> None:
    if after is not None:
        raise InputError("kernels: sums are scaled as they are written only on a GPU")
    function("spmm")(
        ctypes.byref(edges(block, rows)),
        kind(x),
        matrix(x),
        pointer(scale),
        matrix(out),
        c_int64(x.shape[1]),
        c_int64(adds),
    )


def spmm_max(
    block: Block, x: Tensor, best: Tensor, ties: Tensor, sign: int, rows: tuple[int, int]
) -> None:
    function("maximum")(
        ctypes.byref(edges(block, rows)),
        is_double(x),
        matrix(x),
        matrix(best),
        matrix(ties),
        c_int64(x.shape[1]),
        c_int64(sign < 0),
    )


def spmm_max_backward(
    block: Block, best: Tensor, share: Tensor, x: Tensor, grad: Tensor, rows: tuple[int, int]
) -> None:
    function("maximum_backward")(
        ctypes.byref(edges(block, rows)),
        is_double(x),
        matrix(best),
        matrix(share),
        matrix(x),
        matrix(grad),
        c_int64(x.shape[1]),
    )


def pack_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    if out.dtype != x.dtype:
        out.copy_(x[rows])
        return
    size = x.element_size()
    function("pack")(
        pointer(x),
        c_int64(x.stride(0) * size),
        pointer(rows),
        c_int64(len(rows)),
        pointer(out),
        c_int64(out.stride(0) * size),
        c_int64(x.shape[1] * size),
        c_int64(torch.get_num_threads()),
    )


def pack_parts(parts: Parts, rows: Tensor) -> None:
    for x, out in parts:
        pack_rows(x, rows, out)


def add_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    out.index_add_(0, rows, x.to(out.dtype))


def head_dots(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    minus: Tensor | None,
    grad: Tensor | None = None,
    p: float = 0.0,
) -> None:
    if grad is not None:
        raise InputError("kernels: head_dots computes a gradient only on a GPU")
    function("head_dots")(
        is_double(a),
        matrix(a),
        matrix(b),
        pointer(minus),
        matrix(out),
        c_int64(a.shape[0]),
        c_int64(out.shape[1]),
        c_int64(a.shape[1] // out.shape[1]),
        c_int64(torch.get_num_threads()),
    )


def head_scores(z: Tensor, source: Tensor, target: Tensor, out: Tensor) -> None:
    heads = len(source)
    for vector, scores in zip((source, target), out.split(heads, dim=1), strict=True):
        head_dots(z, vector.view(1, -1).expand_as(z), scores, None)


def dropout_nodes(
    x: Tensor,
    out: Tensor,
    ids: Tensor,
    p: float,
    stream: Stream,
    relu: bool,
    passed: Tensor | None,
    sums: Sums | None = None,
) -> None:
    if sums is not None:
        raise InputError("kernels: dropout is fused into sums only on a GPU")
    function("dropout")(
        is_double(x),
        matrix(x),
        matrix(out),
        pointer(ids),
        c_int64(x.shape[0]),
        c_int64(x.shape[1]),
        c_double(p),
        StreamKey(*stream),
        c_int64(relu),
        pointer(passed),
        c_int64(0 if passed is None else passed.stride(0)),
        c_int64(torch.get_num_threads()),
    )


def new_passed(x: Tensor, out: Tensor) -> Tensor:
    """Return an uninitialised array of a bit per entry, laid out as in dropout.cpp."""
    chunks = -(-x.shape[1] // (8 * _PASSED_LANES))
    return torch.empty(x.shape[0], chunks * _PASSED_LANES, dtype=torch.uint8)


def passed_backward(passed: Tensor, g: Tensor, out: Tensor, p: float) -> None:
    function("passed_backward")(
        is_double(g),
        pointer(passed),
        c_int64(passed.stride(0)),
        matrix(g),
        matrix(out),
        c_int64(g.shape[0]),
        c_int64(g.shape[1]),
        c_double(p),
        c_int64(torch.get_num_threads()),
    )


def relu_dropout_backward(y: Tensor, g: Tensor, out: Tensor, p: float) -> None:
    function("relu_dropout_backward")(
        is_double(g),
        matrix(y),
        matrix(g),
        matrix(out),
        c_int64(g.shape[0]),
        c_int64(g.shape[1]),
        c_double(p),
        c_int64(torch.get_num_threads()),
    )
