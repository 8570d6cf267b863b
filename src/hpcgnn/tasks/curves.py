"""Areas under curves over the rows of all ranks, exact, ties included.

nan where a class is missing, and where any score is NaN: such scores have no order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.tasks.order import from_lower_ranks, tally

Area = Callable[[Communicator, Tensor, Tensor], float]


def roc_auc(comm: Communicator, scores_N: Tensor, positive_N: Tensor) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, ties half."""
    counts = _counts(comm, scores_N, positive_N)
    if counts is None:
        return math.nan
    ups, downs = counts.T
    (_, below), (all_ups, all_downs) = from_lower_ranks(comm, counts.sum(axis=0))
    if not all_ups or not all_downs:
        return math.nan
    below_here = below + np.cumsum(downs) - downs
    right = float((ups * (below_here + downs / 2)).sum())
    return comm.allreduce(right, where="AUC") / (float(all_ups) * float(all_downs))


def average_precision(comm: Communicator, scores_N: Tensor, positive_N: Tensor) -> float:
    """The sum over thresholds of precision times the recall gained there."""
    counts = _counts(comm, scores_N, positive_N)
    if counts is None:
        return math.nan
    below, (all_ups, all_downs) = from_lower_ranks(comm, counts.sum(axis=0))
    if not all_ups:
        return math.nan
    # Rows at or above each threshold: all but those below it.
    above = np.array([all_ups, all_downs]) - below - np.cumsum(counts, axis=0) + counts
    precision = above[:, 0] / np.maximum(above.sum(axis=1), 1)
    gained = float((precision * counts[:, 0]).sum())
    return comm.allreduce(gained, where="average precision") / float(all_ups)


def _counts(comm: Communicator, scores_N: Tensor, positive_N: Tensor) -> np.ndarray | None:
    """Positive and negative rows at each score of this rank's share: `[u, 2]`, ascending."""
    if _any_nan(comm, scores_N):
        return None
    positive = positive_N.detach().cpu().numpy().astype(bool)
    values = scores_N.detach().cpu().double().numpy()
    counts = np.stack([positive, ~positive], axis=1).astype(np.int64)
    return tally(comm, values, counts)[1]


def _any_nan(comm: Communicator, scores: Tensor) -> bool:
    return bool(comm.allreduce(int(scores.isnan().any()), op="max", where="NaN scores"))


def mean_over_labels(area: Area, comm: Communicator, scores_NT: Tensor, labels_NT: Tensor) -> float:
    """Mean of an area over the labels that have both a 1 and a 0 known, as OGB's evaluator."""
    if _any_nan(comm, scores_NT[labels_NT >= 0]):
        return math.nan
    ups, downs = ((labels_NT == value).sum(dim=0).cpu().numpy() for value in (1, 0))
    counts = comm.allreduce(np.stack([ups, downs]), where="labels to be scored")
    found = []
    for t in np.flatnonzero((counts > 0).all(axis=0)).tolist():
        known = labels_NT[:, t] >= 0
        found.append(area(comm, scores_NT[known, t], labels_NT[known, t] == 1))
    return float(np.mean(found)) if found else math.nan
