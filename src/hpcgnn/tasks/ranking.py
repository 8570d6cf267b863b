"""How high true pairs stand among false ones, over the ranks; as OGB's evaluators of links.

nan without true pairs, and where any score is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.tasks.order import from_lower_ranks, tally


def mean_reciprocal_rank(comm: Communicator, true_N: Tensor, false_NM: Tensor) -> float:
    """The mean of 1 / rank of each true pair among its own false ones; ties count half.

    Args:
        true_N: scores of this rank's true pairs.
        false_NM: scores of the M false pairs of each.
    """
    rank_N = _ranks(true_N, false_NM)
    undefined = bool(true_N.isnan().any()) or bool(false_NM.isnan().any())
    local = [float((1 / rank_N).sum()), len(rank_N), int(undefined)]
    total, count, undefined = comm.allreduce(np.array(local, np.float64), where="MRR")
    return float(total / count) if count and not undefined else math.nan


def _ranks(true_N: Tensor, false_NM: Tensor) -> np.ndarray:
    true_N1 = true_N.detach().unsqueeze(1)
    above, level = (false_NM > true_N1).sum(dim=1), (false_NM >= true_N1).sum(dim=1)
    return (0.5 * (above + level).double() + 1).cpu().numpy()


def hits_at(
    comm: Communicator, true_N: Tensor, false_M: Tensor, most: Sequence[int]
) -> list[float]:
    """For each k of `most`, the share of true pairs above the k-th highest of all false ones.

    It is 1 where there are fewer than k false pairs.
    """
    scores_M = false_M.detach().cpu().double().numpy()
    undefined = bool(true_N.isnan().any()) or bool(np.isnan(scores_M).any())
    scores_M = scores_M[~np.isnan(scores_M)]
    values, counts_N1 = tally(comm, scores_M, np.ones((len(scores_M), 1), np.int64))
    below, total = (int(sums[0]) for sums in from_lower_ranks(comm, counts_N1.sum(axis=0)))
    # Pairs at or above each score of this rank.
    reached = total - below - np.cumsum(counts_N1[:, 0]) + counts_N1[:, 0]
    bars = []
    for k in most:
        enough = np.flatnonzero(reached >= k)
        bars.append(float(values[enough[-1]]) if len(enough) else -math.inf)
    bars_K = comm.allreduce(np.array(bars), "max", where="hits")
    scores = true_N.detach().cpu().double().numpy()
    local = [*((scores > bar).sum() for bar in bars_K), len(scores), undefined]
    *hits, count, bad = comm.allreduce(np.array(local, np.int64), where="hits")
    if not count or bad:
        return [math.nan] * len(most)
    return [1.0 if total < k else float(found / count) for k, found in zip(most, hits, strict=True)]
