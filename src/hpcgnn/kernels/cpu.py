"""The C++ kernels through ctypes: picks the instruction set, hands over pointers, checks nothing.

The environment variable HPCGNN_ISA (baseline, avx2 or avx512) forces an instruction set.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_double, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcgnn.errors import InputError

if TYPE_CHECKING:
    from hpcgnn.graph import Block
    from hpcgnn.kernels.dropout import Dropout, Stream

LIBRARY = Path(__file__).with_name("libhpcgnn_cpu.so")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


class _Edges(ctypes.Structure):
    _fields_ = (
        ("rows", c_void_p),
        ("begin", c_void_p),
        ("end", c_void_p),
        ("columns", c_void_p),
        ("column_offset", c_int64),
        ("num_columns", c_int64),
        ("first", c_int64),
        ("last", c_int64),
        ("weight", c_void_p),
        ("relation", c_void_p),
        ("features", c_void_p),
        ("feature_width", c_int64),
        ("threads", c_int64),
    )


class _Matrix(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("stride", c_int64))


class _Stream(ctypes.Structure):
    _fields_ = (("seed", c_uint64), ("epoch", c_uint64), ("layer", c_uint64))


class _Dropout(ctypes.Structure):
    _fields_ = (
        ("p", c_double),
        ("stream", _Stream),
        ("row_ids", c_void_p),
        ("column_ids", c_void_p),
        ("reversed", c_int64),
    )


@cache
def _library() -> ctypes.CDLL:
    if not LIBRARY.exists():
        raise InputError(
            "the C++ kernels are not built; run `pip install .` or "
            "`python setup.py build_ext --inplace`",
            file=LIBRARY,
        )
    _share_openmp()
    return ctypes.CDLL(str(LIBRARY))


def _share_openmp() -> None:
    """Let the kernels use torch's OpenMP runtime.

    Two runtimes in one process have two thread pools that spin against each other.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    for line in maps.read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(("libgomp", "libiomp", "libomp")):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return


@cache
def instruction_set() -> str:
    """The instruction set in use: the best this processor has, or the one HPCGNN_ISA names."""
    supported = [name for i, name in enumerate(INSTRUCTION_SETS) if _library().hpcgnn_supports(i)]
    forced = os.environ.get("HPCGNN_ISA")
    if forced is None:
        return supported[-1]
    if forced not in supported:
        raise InputError(f"HPCGNN_ISA must be one of {', '.join(supported)} here", value=forced)
    return forced


@cache
def _function(name: str) -> ctypes._NamedFuncPointer:
    function = _library()[f"hpcgnn_{name}_{instruction_set()}"]
    function.restype = None
    return function


def _pointer(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


def _edges(block: Block, rows: tuple[int, int]) -> _Edges:
    return _Edges(
        _pointer(block.rows),
        block.begin.data_ptr(),
        block.end.data_ptr(),
        block.columns.data_ptr(),
        block.column_offset,
        block.num_columns,
        rows[0],
        rows[1],
        _pointer(block.weight),
        _pointer(block.relation),
        _pointer(block.features),
        0 if block.features is None else block.features.shape[1],
        torch.get_num_threads(),
    )


def _matrix(tensor: Tensor) -> _Matrix:
    return _Matrix(tensor.data_ptr(), tensor.stride(0))


def _optional_matrix(tensor: Tensor | None) -> _Matrix:
    return _Matrix(None, 0) if tensor is None else _matrix(tensor)


def _dropout(dropout: Dropout | None, *, reverse: bool) -> object:
    """A pointer to the struct, or None; `reverse`: the block's rows are the sources."""
    if dropout is None or dropout.p == 0:
        return None
    ids = [dropout.destination_ids.data_ptr(), dropout.source_ids.data_ptr()]
    row_ids, column_ids = reversed(ids) if reverse else ids
    stream = _Stream(*dropout.stream)
    return ctypes.byref(_Dropout(dropout.p, stream, row_ids, column_ids, reverse))


def _is_double(tensor: Tensor) -> c_int64:
    return c_int64(tensor.dtype == torch.float64)


def spmm(block: Block, x: Tensor, out: Tensor, rows: tuple[int, int]) -> None:
    _function("spmm")(
        ctypes.byref(_edges(block, rows)),
        _is_double(x),
        _matrix(x),
        _matrix(out),
        c_int64(x.shape[1]),
    )


def spmm_max(
    block: Block, x: Tensor, best: Tensor, ties: Tensor, sign: int, rows: tuple[int, int]
) -> None:
    _function("maximum")(
        ctypes.byref(_edges(block, rows)),
        _is_double(x),
        _matrix(x),
        _matrix(best),
        _matrix(ties),
        c_int64(x.shape[1]),
        c_int64(sign < 0),
    )


def spmm_max_backward(
    block: Block, best: Tensor, share: Tensor, x: Tensor, grad: Tensor, rows: tuple[int, int]
) -> None:
    _function("maximum_backward")(
        ctypes.byref(_edges(block, rows)),
        _is_double(x),
        _matrix(best),
        _matrix(share),
        _matrix(x),
        _matrix(grad),
        c_int64(x.shape[1]),
    )


def dropout_nodes(
    x: Tensor, out: Tensor, ids: Tensor, p: float, stream: Stream, relu: bool
) -> None:
    _function("dropout")(
        _is_double(x),
        _matrix(x),
        _matrix(out),
        _pointer(ids),
        c_int64(x.shape[0]),
        c_int64(x.shape[1]),
        c_double(p),
        _Stream(*stream),
        c_int64(relu),
        c_int64(torch.get_num_threads()),
    )


def relu_dropout_backward(y: Tensor, g: Tensor, out: Tensor, p: float) -> None:
    _function("relu_dropout_backward")(
        _is_double(g),
        _matrix(y),
        _matrix(g),
        _matrix(out),
        c_int64(g.shape[0]),
        c_int64(g.shape[1]),
        c_double(p),
        c_int64(torch.get_num_threads()),
    )


def transpose(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Begin of each column (one more than columns), local row and old edge of each new edge."""
    pointer = torch.empty(block.num_columns + 1, dtype=torch.int64)
    local_rows = torch.empty(block.num_edges, dtype=torch.int32)
    order = torch.empty(block.num_edges, dtype=torch.int64)
    _function("transpose")(
        ctypes.byref(_edges(block, (0, block.num_rows))),
        _pointer(pointer),
        _pointer(local_rows),
        _pointer(order),
    )
    return pointer, local_rows, order


def attention_forward(
    block: Block,
    z: Tensor,
    s: Tensor,
    t: Tensor,
    top: Tensor,
    total: Tensor,
    out: Tensor,
    slope: float,
    dropout: Dropout | None,
    edge_vector: Tensor | None,
    rows: tuple[int, int],
) -> None:
    heads = s.shape[1]
    _function("attention_forward")(
        ctypes.byref(_edges(block, rows)),
        _is_double(z),
        *map(_matrix, (z, s, t, top, total, out)),
        _optional_matrix(edge_vector),
        c_int64(heads),
        c_int64(z.shape[1] // heads),
        c_double(slope),
        _dropout(dropout, reverse=False),
    )


def attention_backward(
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
    dropout: Dropout | None,
    edge_vector: Tensor | None,
    grad_edge_vector: Tensor | None,
    rows: tuple[int, int],
) -> None:
    heads = s.shape[1]
    grad_t_parts = _thread_parts(grad_t)
    vector_parts = _thread_parts(grad_edge_vector)
    _function("attention_backward")(
        ctypes.byref(_edges(block, rows)),
        _is_double(z),
        *map(_matrix, (g, t, lse, d, z, s, grad_z, grad_s)),
        _Matrix(None, 0) if grad_t_parts is None else _matrix(grad_t_parts[0]),
        c_int64(0 if grad_t_parts is None else grad_t_parts.stride(0)),
        _optional_matrix(edge_vector),
        _Matrix(None, 0) if vector_parts is None else _matrix(vector_parts[0]),
        c_int64(0 if vector_parts is None else vector_parts.stride(0)),
        c_int64(heads),
        c_int64(z.shape[1] // heads),
        c_double(slope),
        _dropout(dropout, reverse=True),
    )
    _add_parts(grad_t, grad_t_parts)
    _add_parts(grad_edge_vector, vector_parts)


def _thread_parts(grad: Tensor | None) -> Tensor | None:
    """A sum of its own for each thread: the result then doesn't depend on who comes first."""
    if grad is None:
        return None
    threads = torch.get_num_threads()
    return grad[None] if threads == 1 else grad.new_zeros(threads, *grad.shape)


def _add_parts(grad: Tensor | None, parts: Tensor | None) -> None:
    if grad is not None and parts is not None and parts.data_ptr() != grad.data_ptr():
        for part in parts:
            grad += part
