"""Dropout of node features on a GPU, and the keys of all masks, computed on the host."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from hpcgnn.kernels.checks import sum_type
from hpcgnn.kernels.cuda.launch import THREADS, WARP, int32, int64, launch, matrix, pointer, real
from hpcgnn.kernels.cuda.shapes import NAMES, power_of_two, vector_width
from hpcgnn.kernels.masks import WORD, EdgeDropout, Stream, Sums

_GOLDEN = 0x9E3779B97F4A7C15


def stream_key(stream: Stream) -> int:
    """Return the stream's key, as `hpcgnn_stream` of random.h does."""
    key = 0
    for word in stream:
        key = _mix(key + word + _GOLDEN)
    return key


def _mix(x: int) -> int:
    x &= WORD
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def threshold(p: float) -> np.uint32:
    """Return the threshold for p in [0, 1), as `hpcgnn_threshold` of random.h does."""
    return np.uint32(int(p * 2**32))


def edge_dropout(
    dropout: EdgeDropout | None, x: Tensor, *, reverse: bool
) -> tuple[np.generic, ...]:
    """Return the arguments of the macro DROPOUT for features `x`.

    With `reverse` the block's rows are the sources. The key at an edge's destination is the
    complement of the stream's key.
    """
    if dropout is None or dropout.p == 0:
        return _nothing(x.dtype)
    kind = real(sum_type(x.dtype))
    key = stream_key(dropout.stream)
    ends = [(dropout.destination_ids, ~key & WORD), (dropout.source_ids, key)]
    (row_ids, row_key), (column_ids, column_key) = reversed(ends) if reverse else ends
    return (
        *map(pointer, (row_ids, column_ids)),
        *map(np.uint64, (row_key, column_key)),
        threshold(dropout.p),
        np.uint32(dropout.first_head),
        kind(1 / (1 - dropout.p)),
    )


@cache
def _nothing(dtype: torch.dtype) -> tuple[np.generic, ...]:
    key, none = np.uint64(0), np.uint32(0)
    return (np.uintp(0), np.uintp(0), key, key, none, none, real(sum_type(dtype))(1))


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
    if x.numel() == 0:
        return
    divisor, bias = (None, None) if sums is None else (sums.divisor_NH, sums.bias_K)
    parts = 1 if divisor is None else divisor.shape[1]
    vector, lanes_log, blocks = _patches((x, out))
    launch(
        "dropout",
        f"dropout<{NAMES[x.dtype]}, {NAMES[out.dtype]}, {vector}>",
        blocks,
        (
            *matrix(x),
            *matrix(out),
            pointer(ids),
            int64(x.shape[0]),
            int32(x.shape[1]),
            *matrix(divisor),
            int32(x.shape[1] // parts),
            pointer(bias),
            np.uint64(stream_key(stream)),
            threshold(p),
            real(sum_type(x.dtype))(1 / (1 - p)),
            int32(relu),
            pointer(passed),
            int32(lanes_log),
        ),
        x.device,
    )


def new_passed(x: Tensor, out: Tensor) -> Tensor:
    """Return an uninitialised array: a byte for the columns that a thread loads at once."""
    rows, width = x.shape
    columns = width // _patches((x, out))[0] if width else 0
    return torch.empty(rows, columns, dtype=torch.uint8, device=x.device)


def passed_backward(passed: Tensor, g: Tensor, out: Tensor, p: float) -> None:
    if g.numel() == 0:
        return
    rows, width = g.shape
    vector = width // passed.shape[1]
    # Rows of g may not be aligned for loads of this width.
    aligned = vector_width(width, (g,)) >= vector
    g = g if aligned else g.clone(memory_format=torch.contiguous_format)
    to = out if vector_width(width, (out,)) >= vector else torch.empty_like(g)
    lanes = min(power_of_two(width // vector), WARP)
    launch(
        "dropout",
        f"passed_backward<{NAMES[g.dtype]}, {vector}>",
        (-(-rows * lanes // THREADS), 1),
        (
            pointer(passed),
            *matrix(g),
            *matrix(to),
            int64(rows),
            int32(width),
            real(sum_type(g.dtype))(1 / (1 - p)),
            int32(lanes.bit_length() - 1),
        ),
        g.device,
    )
    if to is not out:
        out.copy_(to)


def relu_dropout_backward(y: Tensor, g: Tensor, out: Tensor, p: float) -> None:
    if g.numel() == 0:
        return
    vector, lanes_log, blocks = _patches((y, g, out))
    launch(
        "dropout",
        f"relu_dropout_backward<{NAMES[g.dtype]}, {vector}>",
        blocks,
        (
            *matrix(y),
            *matrix(g),
            *matrix(out),
            int64(g.shape[0]),
            int32(g.shape[1]),
            real(sum_type(g.dtype))(1 / (1 - p)),
            int32(lanes_log),
        ),
        g.device,
    )


def _patches(tensors: tuple[Tensor, ...]) -> tuple[int, int, tuple[int, int]]:
    """Return the vector width, the logarithm of the lanes per row, and the blocks of threads."""
    rows, width = tensors[0].shape
    vector = vector_width(width, tensors)
    lanes = min(power_of_two(width // vector), WARP)
    return vector, lanes.bit_length() - 1, (-(-rows * lanes // THREADS), 1)
