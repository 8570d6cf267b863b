"""Everyone sends an array to everyone, in pieces that fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hpcgnn.errors import CommunicationError

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcgnn.comm.communicator import Communicator

TAG = 32001
PIECE_BYTES = 32 * 2**20
IN_FLIGHT = 16


def alltoallv(
    comm: Communicator, arrays: Sequence[np.ndarray], where: str, piece_bytes: int
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
    comm: Communicator, sent: list[np.ndarray], got: list[np.ndarray], piece_bytes: int
) -> Iterator[Callable[[], MPI.Request]]:
    """The receives and sends of this rank, in the order in which to start them."""
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


def _run(messages: Iterator[Callable[[], MPI.Request]], comm: Communicator, where: str) -> None:
    active: list[MPI.Request] = []
    for start in messages:
        active.append(start())
        if len(active) >= IN_FLIGHT:
            with comm.unfinished.waiting(where, active):
                del active[comm.wait_any(active, where)]
    with comm.unfinished.waiting(where, active):
        comm.wait_all(active, where)
