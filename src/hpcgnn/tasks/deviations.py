"""How far predicted values lie from the true ones, over the rows of all ranks.

Values are `[n]` or `[n, T]`; of several values per row the mean over them. A true value that is NaN
is not known and not counted. nan where a prediction of a known value isn't finite, and without any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hpcgnn.comm.communicator import Communicator


def mean_absolute_error(comm: Communicator, found_NT: Tensor, true_NT: Tensor) -> float:
    """The mean of |found - true|."""
    values = _Values.of(comm, found_NT, true_NT)
    return values.averaged(values.mean(np.abs(values.found - values.true)))


def root_mean_squared_error(comm: Communicator, found_NT: Tensor, true_NT: Tensor) -> float:
    """The square root of the mean of (found - true)^2, of each value by itself."""
    values = _Values.of(comm, found_NT, true_NT)
    return values.averaged(np.sqrt(values.mean((values.found - values.true) ** 2)))


def r2(comm: Communicator, found_NT: Tensor, true_NT: Tensor) -> float:
    """1 - (squared errors) / (squared distances from the mean); nan below two known values.

    Where the true values are all the same: 1 if they were found, else 0.
    """
    values = _Values.of(comm, found_NT, true_NT)
    missed_T = values.mean((values.found - values.true) ** 2)
    spread_T = values.mean((values.true - values.mean(values.true)) ** 2)
    same = spread_T == 0
    score_T = 1 - missed_T / np.where(same, 1, spread_T)
    score_T[same] = np.where(np.isnan(missed_T), math.nan, missed_T == 0)[same]
    score_T[values.count_T == 1] = math.nan
    return values.averaged(score_T)


@dataclass(frozen=True)
class _Values:
    """This rank's values, float64 `[n, T]`; how many of each column are known on all ranks."""

    comm: Communicator
    found: np.ndarray
    true: np.ndarray
    known: np.ndarray
    count_T: np.ndarray

    @staticmethod
    def of(comm: Communicator, found_NT: Tensor, true_NT: Tensor) -> _Values:
        found, true = (
            rows.detach().cpu().double().numpy().reshape(len(rows), _width(rows))
            for rows in (found_NT, true_NT)
        )
        known = ~np.isnan(true)
        count_T = comm.allreduce(known.sum(axis=0), where="known values")
        return _Values(comm, found, true, known, count_T)

    def mean(self, values_NT: np.ndarray) -> np.ndarray:
        """Of each column, over the known values of all ranks; nan where it is not finite."""
        sums_T = np.where(self.known, values_NT, 0).sum(axis=0)
        total_T = self.comm.allreduce(sums_T, where="deviations")
        mean_T: np.ndarray = total_T / np.maximum(self.count_T, 1)
        return np.where(np.isfinite(mean_T), mean_T, math.nan)

    def averaged(self, values_T: np.ndarray) -> float:
        """Over the columns of which anything is known."""
        there = self.count_T > 0
        return float(values_T[there].mean()) if there.any() else math.nan


def _width(rows: Tensor) -> int:
    return rows.shape[1] if rows.dim() == 2 else 1
