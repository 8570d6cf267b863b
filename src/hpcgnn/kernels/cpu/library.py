"""The library of C++ kernels and the conversion of its arguments, which are not checked.

The best instruction set of the processor is used. The environment variable HPCGNN_ISA (baseline,
avx2 or avx512) forces another one.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_double, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.kernels.block import Block
from hpcgnn.kernels.masks import EdgeDropout
from hpcgnn.native import open_library
from hpcgnn.system import loaded_files

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


class Matrix(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("stride", c_int64))


class StreamKey(ctypes.Structure):
    _fields_ = (("seed", c_uint64), ("epoch", c_uint64), ("layer", c_uint64))


class _Dropout(ctypes.Structure):
    _fields_ = (
        ("p", c_double),
        ("stream", StreamKey),
        ("row_ids", c_void_p),
        ("column_ids", c_void_p),
        ("reversed", c_int64),
        ("first_head", c_int64),
    )


@cache
def _library() -> ctypes.CDLL:
    _share_openmp()
    return open_library(LIBRARY)


def _share_openmp() -> None:
    """Make the kernels use torch's OpenMP runtime.

    Two runtimes in one process would have two thread pools that compete by busy waiting.
    """
    for path in loaded_files():
        if path.name.startswith(("libgomp", "libiomp", "libomp")):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return


def supported() -> list[str]:
    """Return the instruction sets that this processor supports, the best one last."""
    return [name for i, name in enumerate(INSTRUCTION_SETS) if _library().hpcgnn_supports(i)]


@cache
def instruction_set() -> str:
    """Return the instruction set in use: the best supported one, or the one HPCGNN_ISA names."""
    forced = os.environ.get("HPCGNN_ISA")
    if forced is None:
        return supported()[-1]
    if forced not in supported():
        raise InputError(f"HPCGNN_ISA must be one of {', '.join(supported())} here", value=forced)
    return forced


@cache
def rounds_in_products() -> bool:
    """Return whether this processor multiplies pairs of bfloat16 (AVX-512 BF16)."""
    return bool(_library().hpcgnn_supports(len(INSTRUCTION_SETS)))


@cache
def function(name: str) -> ctypes._NamedFuncPointer:
    found = _library()[f"hpcgnn_{name}_{instruction_set()}"]
    found.restype = None
    return found


def pointer(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


def edges(block: Block, rows: tuple[int, int]) -> _Edges:
    return _Edges(
        pointer(block.rows),
        block.begin.data_ptr(),
        block.end.data_ptr(),
        block.columns.data_ptr(),
        block.column_offset,
        block.num_columns,
        rows[0],
        rows[1],
        pointer(block.weight),
        pointer(block.relation),
        pointer(block.features),
        0 if block.features is None else block.features.shape[1],
        torch.get_num_threads(),
    )


def matrix(tensor: Tensor) -> Matrix:
    return Matrix(tensor.data_ptr(), tensor.stride(0))


def optional_matrix(tensor: Tensor | None) -> Matrix:
    return Matrix(None, 0) if tensor is None else matrix(tensor)


def dropout_of(dropout: EdgeDropout | None, *, reverse: bool) -> object:
    """Return a pointer to the struct, or None; `reverse`: the block's rows are the sources."""
    if dropout is None or dropout.p == 0:
        return None
    ids = [dropout.destination_ids.data_ptr(), dropout.source_ids.data_ptr()]
    row_ids, column_ids = reversed(ids) if reverse else ids
    stream = StreamKey(*dropout.stream)
    return ctypes.byref(
        _Dropout(dropout.p, stream, row_ids, column_ids, reverse, dropout.first_head)
    )


def is_double(tensor: Tensor) -> c_int64:
    return c_int64(tensor.dtype == torch.float64)


def kind(gathered: Tensor) -> c_int64:
    """Return the number that `interface.h` gives to the dtype of the rows that a kernel gathers."""
    return c_int64({torch.float64: 1, torch.bfloat16: 2}.get(gathered.dtype, 0))


class ThreadParts:
    """A separate sum for each thread, so that the result doesn't depend on the threads' order.

    `first` is the first thread's matrix, `step` the number of elements from one matrix to the next.

    Args:
        grad: the gradient to add to; or None; or separate sums already, `[threads, rows, columns]`.
        given: the edges that the kernel is called with, which hold the number of threads.
        dtype: dtype of the threads' sums; that of `grad` by default.
    """

    def __init__(
        self, grad: Tensor | None, given: _Edges, dtype: torch.dtype | None = None
    ) -> None:
        self.first, self.step = Matrix(None, 0), c_int64(0)
        self._grad, self._parts = grad, None
        if grad is None:
            return
        if grad.dim() == 3:
            parts = grad
        elif given.threads == 1 and dtype in (None, grad.dtype):
            parts = grad[None]
        else:
            self._parts = parts = grad.new_zeros(given.threads, *grad.shape, dtype=dtype)
        self.first, self.step = matrix(parts[0]), c_int64(parts.stride(0))

    def add_up(self) -> None:
        if self._grad is not None and self._parts is not None:
            for part in self._parts[1:]:
                self._parts[0] += part
            self._grad += self._parts[0]


def transpose(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Return each column's first edge (columns + 1), each new edge's local row and old index."""
    begin = torch.empty(block.num_columns + 1, dtype=torch.int64)
    local_rows = torch.empty(block.num_edges, dtype=torch.int32)
    order = torch.empty(block.num_edges, dtype=torch.int64)
    block_edges = ctypes.byref(edges(block, (0, block.num_rows)))
    function("transpose")(block_edges, pointer(begin), pointer(local_rows), pointer(order))
    return begin, local_rows, order
