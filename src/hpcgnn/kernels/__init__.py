"""The compute kernels: one Python interface to the C++ and the CUDA sources.

Every function adds to the outputs that it is given, so that blocks can arrive one after another;
with `rows=(low, high)` it processes only these rows of the block, so that the caller can progress
MPI between pieces. Matrices may have any row stride, but contiguous columns. All tensors of a call
are on one device and have one dtype, float32 or float64; on a GPU gathered rows may also be float16
or bfloat16, and sums are then float32. Tensors that don't fit raise InputError.
Results are bitwise the same in every run (on CPUs, with the same number of threads).
"""

from typing import TYPE_CHECKING

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
from hpcgnn.kernels.block import Block, RowScale
from hpcgnn.kernels.chunks import (
    column_range,
    columns_between,
    picked,
    rows_between,
    transpose,
    transposed,
)
from hpcgnn.kernels.dense import (
    PackedWeights,
    add_outer_products,
    factor_type,
    multiplies,
    pack_weights,
    product,
)
from hpcgnn.kernels.dropout import dropout_nodes, dropout_nodes_backward, new_passed
from hpcgnn.kernels.gat import (
    gat_backward,
    gat_forward,
    gatv2_backward,
    gatv2_forward,
    takes_whole_blocks,
)
from hpcgnn.kernels.masks import EdgeDropout, Sums
from hpcgnn.kernels.sums import (
    ThreadSums,
    add_rows,
    head_dots,
    head_scores,
    pack_parts,
    pack_rows,
    spmm,
    spmm_max,
    spmm_max_backward,
)

if TYPE_CHECKING:  # the type checker compares both sides with the protocol
    from hpcgnn.kernels.backend import Backend
    from hpcgnn.kernels.cpu import backend as cpu
    from hpcgnn.kernels.cuda import backend as cuda

    SIDES: tuple[Backend, Backend] = (cpu, cuda)

__all__ = [
    "Block",
    "Destinations",
    "EdgeDropout",
    "GATGradients",
    "GATv2Gradients",
    "PackedWeights",
    "Projections",
    "ResultGradient",
    "RowScale",
    "RunningSoftmax",
    "Scoring",
    "Sources",
    "Sums",
    "ThreadSums",
    "add_outer_products",
    "add_rows",
    "column_range",
    "columns_between",
    "dropout_nodes",
    "dropout_nodes_backward",
    "factor_type",
    "gat_backward",
    "gat_forward",
    "gatv2_backward",
    "gatv2_forward",
    "head_dots",
    "head_scores",
    "multiplies",
    "new_passed",
    "pack_parts",
    "pack_rows",
    "pack_weights",
    "picked",
    "product",
    "rows_between",
    "spmm",
    "spmm_max",
    "spmm_max_backward",
    "takes_whole_blocks",
    "transpose",
    "transposed",
]
