"""Reductions and all-to-all exchanges of any size, over point-to-point messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hpcgnn.comm.unfinished import Unfinished
from hpcgnn.errors import CommunicationError

if TYPE_CHECKING:
    from mpi4py import MPI


LARGEST_MESSAGE = 1 << 30  # bytes; MPI's counts are C ints


def is_tensor(value: object) -> bool:
    """Return whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> np.ndarray:
    """Return the numpy array that shares memory with `value` (array or tensor on the host)."""
    if is_tensor(value):
        return value.detach().numpy()
    return np.asarray(value)


def as_bytes(buffer: Any) -> Any:
    """Return `buffer` (contiguous, any dtype) as uint8 [nbytes] that shares its memory.

    An array or a host tensor gives an array, a tensor on a GPU gives a tensor. Raises
    CommunicationError if it is not contiguous or is above `LARGEST_MESSAGE` bytes.
    """
    tensor = is_tensor(buffer)
    if not (buffer.is_contiguous() if tensor else buffer.flags.c_contiguous):
        raise CommunicationError("a message must be contiguous in memory: copy it first")
    if buffer.nbytes > LARGEST_MESSAGE:
        raise CommunicationError(
            f"a message of {buffer.nbytes} bytes is above {LARGEST_MESSAGE}: send it in chunks"
        )
    if not tensor:
        return buffer.reshape(-1).view(np.uint8)
    raw = buffer.detach().reshape(-1).view(sys.modules["torch"].uint8)
    return raw if raw.is_cuda else raw.numpy()


SMALL_ARRAY = 1024
SMALL_TOTAL = 65536
SEGMENT = 64 * 2**20
_FOLDS: dict[str, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum}


def fold(op: str) -> np.ufunc:
    """Return the numpy operation of "sum", "min" or "max"; raise CommunicationError for another."""
    if op not in _FOLDS:
        raise CommunicationError(f"no reduction is called {op!r}: use sum, min or max")
    return _FOLDS[op]


def fold_rows(rows_PN: np.ndarray, op: str) -> np.ndarray:
    """Reduce the rows in their order; sums of floats are made in float64 and rounded once."""
    narrow = op == "sum" and rows_PN.dtype.kind == "f" and rows_PN.dtype.itemsize < 8
    total = rows_PN[0].astype(np.float64) if narrow else rows_PN[0].copy()
    for row in rows_PN[1:]:
        fold(op)(total, row, out=total)
    return total.astype(rows_PN.dtype, copy=False)


def allreduce_array(
    mpi: MPI.Comm, values_N: np.ndarray, op: str, wait: Callable[[MPI.Request], None]
) -> np.ndarray:
    """Reduce a 1-D contiguous array over the ranks; return a new array of the same dtype."""
    size = mpi.Get_size()
    fold(op)
    if size == 1 or values_N.size == 0:
        return values_N.copy()
    if values_N.nbytes <= SMALL_ARRAY or values_N.nbytes * size <= SMALL_TOTAL:
        rows_PN = np.empty((size, values_N.size), values_N.dtype)
        wait(mpi.Iallgather(values_N.view(np.uint8), rows_PN.view(np.uint8)))
        return fold_rows(rows_PN, op)
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
    total_S = fold_rows(rows_PS, op)
    wait(mpi.Iallgather(total_S.view(np.uint8), padded.view(np.uint8)))
    return padded[: values_N.size]


TAG = 32001
PIECE_BYTES = 32 * 2**20
IN_FLIGHT = 16


class Messages(Protocol):
    """What an exchange of many messages needs of a communicator; see Communicator."""

    rank: int
    size: int
    mpi: MPI.Comm
    unfinished: Unfinished

    def isend(self, buffer: Any, peer: int, tag: int) -> MPI.Request:
        """Start sending."""

    def irecv(self, buffer: Any, peer: int, tag: int) -> MPI.Request:
        """Start receiving."""

    def wait_any(self, requests: Sequence[MPI.Request], where: str) -> int:
        """Wait for one of the requests."""

    def wait_all(self, requests: Sequence[MPI.Request], where: str) -> None:
        """Wait for all requests."""


def alltoallv(
    comm: Messages, arrays: Sequence[np.ndarray], where: str, piece_bytes: int
) -> list[np.ndarray]:
    """See Communicator.alltoallv."""
    kinds = {(array.dtype.str, array.shape[1:]) for array in arrays}
    if len(arrays) != comm.size or len(kinds) != 1 or any(a.ndim == 0 for a in arrays):
        raise CommunicationError(
            f"{where}: {comm.size} arrays of one dtype and row shape are needed"
        )
    sent = [np.ascontiguousarray(array) for array in arrays]
    counts_P = np.array([len(array) for array in sent], np.int64)
    coming_P = np.empty_like(counts_P)
    request = comm.mpi.Ialltoall(counts_P, coming_P)
    with comm.unfinished.waiting(where, request):
        comm.wait_all([request], where)
    got = [np.empty((int(n), *sent[0].shape[1:]), sent[0].dtype) for n in coming_P]
    got[comm.rank][...] = sent[comm.rank]
    _run(_messages(comm, sent, got, piece_bytes), comm, where)
    return got


def _messages(
    comm: Messages, sent: list[np.ndarray], got: list[np.ndarray], piece_bytes: int
) -> Iterator[Callable[[], MPI.Request]]:
    """Yield calls that start this rank's receives and sends, in the order to start them."""
    for step in range(1, comm.size):
        to, source = (comm.rank + step) % comm.size, (comm.rank - step) % comm.size
        incoming, outgoing = _pieces(got[source], piece_bytes), _pieces(sent[to], piece_bytes)
        for i in range(max(len(incoming), len(outgoing))):
            if i < len(incoming):
                yield partial(comm.irecv, incoming[i], source, TAG)
            if i < len(outgoing):
                yield partial(comm.isend, outgoing[i], to, TAG)


def _pieces(array: np.ndarray, piece_bytes: int) -> list[np.ndarray]:
    flat = array.reshape(-1).view(np.uint8)
    return [flat[i : i + piece_bytes] for i in range(0, flat.size, piece_bytes)]


def _run(messages: Iterator[Callable[[], MPI.Request]], comm: Messages, where: str) -> None:
    active: list[MPI.Request] = []
    for start in messages:
        active.append(start())
        if len(active) >= IN_FLIGHT:
            with comm.unfinished.waiting(where, active):
                del active[comm.wait_any(active, where)]
    with comm.unfinished.waiting(where, active):
        comm.wait_all(active, where)
