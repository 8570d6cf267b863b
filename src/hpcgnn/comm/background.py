"""Sums over the ranks that run in the background of other work and other messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcgnn.comm.collectives import SMALL_ARRAY, SMALL_TOTAL, fold_rows
from hpcgnn.comm.liveness.wait import Waiter


class BackgroundSums:
    """Background sums, begun in the same order on all ranks and finished together.

    They use an MPI communicator of their own, so that all other messages of the ranks may meanwhile
    come in any order. Results are bitwise those of `Communicator.allreduce`.

    Args:
        mpi: that communicator.
        waiter: the waiter of the communicator that `mpi` is a duplicate of.
    """

    def __init__(self, mpi: Any, waiter: Waiter) -> None:
        self.mpi, self._waiter = mpi, waiter
        self._begun: list[_Sum] = []

    def begin(self, values_N: np.ndarray) -> None:
        """Start to sum this contiguous array over the ranks; it must not change until `finish`."""
        self._begun.append(_Sum(self.mpi, values_N))

    def finish(self, where: str) -> list[np.ndarray]:
        """Return the sums of all arrays begun since the last call, in order. Collective."""
        begun = self._begun[:]
        self._begun.clear()
        for one in begun:
            self._waiter.any([one.request], where)
            one.fold()
        self._waiter.all([one.request for one in begun if one.request is not None], where)
        return [one.total_N[: one.size] for one in begun]


class _Sum:
    """One sum: every rank sums a share of the elements, or all of them if they are few.

    Attributes:
        size: number of elements of the array.
        request: the request to wait for, or None.
        total_N: the sum, valid after `fold` and the wait for `request`; if it is made of shares, it
            may be longer than `size`.
    """

    def __init__(self, mpi: Any, values_N: np.ndarray) -> None:
        self._mpi = mpi
        self.size = values_N.size
        ranks = mpi.Get_size()
        self._few = values_N.nbytes <= SMALL_ARRAY or values_N.nbytes * ranks <= SMALL_TOTAL
        share = self.size if self._few else -(-self.size // ranks)
        self._rows_PS = np.empty((ranks, share), values_N.dtype)
        if self._few:
            self.total_N = values_N
            self.request = mpi.Iallgather(values_N.view(np.uint8), self._rows_PS.view(np.uint8))
            return
        self.total_N = np.zeros(ranks * share, values_N.dtype)
        self.total_N[: values_N.size] = values_N
        self.request = mpi.Ialltoall(self.total_N.view(np.uint8), self._rows_PS.view(np.uint8))

    def fold(self) -> None:
        """Sum what was received, and start to gather the shares of all ranks."""
        share_S = fold_rows(self._rows_PS, "sum")
        if self._few:
            self.total_N, self.request = share_S, None
        else:
            self._rows_PS = share_S  # MPI reads it until the request is complete
            own, all_P = share_S.view(np.uint8), self.total_N.view(np.uint8)
            self.request = self._mpi.Iallgather(own, all_P)
