"""Sums over the ranks that go on beside other work and other messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcgnn.comm.collectives import SMALL_ARRAY, SMALL_TOTAL, fold_rows
from hpcgnn.comm.liveness.wait import Waiter


class BackgroundSums:
    """Begins sums in one order, which is the same on all ranks, and finishes them together.

    On an MPI communicator of its own: what else the ranks say to each other meanwhile may come in
    any order. Results are those of `Communicator.allreduce` to the bit.

    Args:
        mpi: that communicator.
        waiter: of the communicator that it is a duplicate of.
    """

    def __init__(self, mpi: Any, waiter: Waiter) -> None:
        self.mpi, self._waiter = mpi, waiter
        self._begun: list[_Sum] = []

    def begin(self, values_N: np.ndarray) -> None:
        """Start adding up this contiguous array, which must not change until `finish`."""
        self._begun.append(_Sum(self.mpi, values_N))

    def finish(self, where: str) -> list[np.ndarray]:
        """The sums of all arrays begun since the last time, in order; collective."""
        begun = self._begun[:]
        self._begun.clear()
        for one in begun:
            self._waiter.any([one.request], where)
            one.fold()
        self._waiter.all([one.request for one in begun if one.request is not None], where)
        return [one.total_N[: one.size] for one in begun]


class _Sum:
    """Every rank adds up a share of the elements, or where they are few all of them.

    Attributes:
        size: elements of the array.
        request: what is to be waited for; None where nothing is.
        total_N: the sum, after `fold` and that wait; where it is made of shares, the last one may
            reach beyond `size`.
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
        """Add up what has come, and start handing it round."""
        share_S = fold_rows(self._rows_PS, "sum")
        if self._few:
            self.total_N, self.request = share_S, None
        else:
            self._rows_PS = share_S  # MPI reads it until the request has ended
            own, all_P = share_S.view(np.uint8), self.total_N.view(np.uint8)
            self.request = self._mpi.Iallgather(own, all_P)
