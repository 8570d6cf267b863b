"""All-reduce whose result is the same bits on every rank and in every run.

MPI leaves the order of a reduction to the library. Here the values are added in rank order:
small arrays are gathered everywhere and added by everyone; of large ones each rank adds its
share (all-to-all), and the shares are gathered. Narrow floats are added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hpcgnn.errors import CommunicationError

if TYPE_CHECKING:
    from mpi4py import MPI

SMALL_ARRAY = 1024
SMALL_TOTAL = 65536
SEGMENT = 64 * 2**20

_FOLDS: dict[str, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum}


def fold(op: str) -> np.ufunc:
    """The numpy operation of `op`: "sum", "min" or "max"; CommunicationError for another."""
    if op not in _FOLDS:
        raise CommunicationError(f"no reduction named {op!r}: use sum, min or max")
    return _FOLDS[op]


def _fold_rows(rows_PN: np.ndarray, op: str) -> np.ndarray:
    narrow = op == "sum" and rows_PN.dtype.kind == "f" and rows_PN.dtype.itemsize < 8
    total = rows_PN[0].astype(np.float64) if narrow else rows_PN[0].copy()
    for row in rows_PN[1:]:
        fold(op)(total, row, out=total)
    return total.astype(rows_PN.dtype, copy=False)


def allreduce_array(
    mpi: MPI.Comm, values_N: np.ndarray, op: str, wait: Callable[[MPI.Request], None]
) -> np.ndarray:
    """Reduce a 1-D contiguous array over the ranks; returns a new array of the same dtype."""
    size = mpi.Get_size()
    fold(op)
    if size == 1 or values_N.size == 0:
        return values_N.copy()
    if values_N.nbytes <= SMALL_ARRAY or values_N.nbytes * size <= SMALL_TOTAL:
        rows_PN = np.empty((size, values_N.size), values_N.dtype)
        wait(mpi.Iallgather(values_N.view(np.uint8), rows_PN.view(np.uint8)))
        return _fold_rows(rows_PN, op)
    out_N = np.empty_like(values_N)
    step = max(size, SEGMENT // values_N.itemsize)
    for begin in range(0, values_N.size, step):
        piece = slice(begin, begin + step)
        out_N[piece] = _reduce_by_shares(mpi, values_N[piece], op, wait)
    return out_N


def _reduce_by_shares(
    mpi: MPI.Comm, values_N: np.ndarray, op: str, wait: Callable[[MPI.Request], None]
) -> np.ndarray:
    size = mpi.Get_size()
    share = -(-values_N.size // size)
    padded = np.zeros(size * share, values_N.dtype)
    padded[: values_N.size] = values_N
    rows_PS = np.empty((size, share), values_N.dtype)
    wait(mpi.Ialltoall(padded.view(np.uint8), rows_PS.view(np.uint8)))
    total_S = _fold_rows(rows_PS, op)
    wait(mpi.Iallgather(total_S.view(np.uint8), padded.view(np.uint8)))
    return padded[: values_N.size]
