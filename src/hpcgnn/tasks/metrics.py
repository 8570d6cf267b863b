"""Metrics over the rows of all ranks: shares, areas under curves, ranks of pairs, deviations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator

_SAMPLE = 64  # values per rank from which the cuts are chosen
Area = Callable[[Communicator, Tensor, Tensor], float]


def tally(
    comm: Communicator, values_N: np.ndarray, counts_NK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each distinct value with its counts summed over all ranks; collective.

    A rank sends each of its distinct values once, and the cuts between ranks are chosen from
    samples, so that no rank holds much more than its share, even with ties.

    Args:
        values_N: float64 `[n]`, no NaN.
        counts_NK: int64 `[n, K]`.

    Returns:
        This rank's values, ascending and above those of all lower ranks; their counts.
    """
    values, counts = _once(values_N, counts_NK)
    sample = values[np.linspace(0, len(values) - 1, min(len(values), _SAMPLE)).astype(int)]
    samples = np.sort(np.concatenate(comm.allgather(sample, where="order of scores")))
    cuts = [samples[len(samples) * p // comm.size] for p in range(1, comm.size) if len(samples)]
    bounds = [0, *np.searchsorted(values, cuts, side="left"), len(values)]
    bounds += [len(values)] * (comm.size + 1 - len(bounds))
    shares = [slice(bounds[p], bounds[p + 1]) for p in range(comm.size)]
    values = np.concatenate(comm.alltoallv([values[s] for s in shares], where="scores"))
    counts = np.concatenate(comm.alltoallv([counts[s] for s in shares], where="counts of scores"))
    return _once(values, counts)


def _once(values_N: np.ndarray, counts_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, place = np.unique(values_N, return_inverse=True)
    counts = np.zeros((len(values), counts_NK.shape[1]), np.int64)
    np.add.at(counts, place, counts_NK)
    return values, counts


def from_lower_ranks(comm: Communicator, own_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of `own_K` (int64) over the ranks below this one, and over all; collective."""
    all_PK = np.stack(comm.allgather(own_K, where="counts of scores"))
    return all_PK[: comm.rank].sum(axis=0), all_PK.sum(axis=0)


def accuracy(comm: Communicator, logits_NY: Tensor, labels_N: Tensor) -> float:
    """Return the share of rows whose largest logit is that of their label."""
    return share_right(comm, *guesses(logits_NY), labels_N)


def guesses(logits_NY: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's class, the first of the largest logit, and whether any logit is NaN."""
    most_N, guess_N = logits_NY.max(dim=-1)  # NaN is the largest
    return guess_N, most_N.isnan().any()


def share_right(comm: Communicator, guess_N: Tensor, undefined: Tensor, labels_N: Tensor) -> float:
    """Return the accuracy of such guesses; nan if they are undefined on any rank."""
    local = np.array([int((guess_N == labels_N).sum()), len(labels_N), int(undefined)])
    hits, count, undefined = comm.allreduce(local, where="accuracy")
    return float(hits / count) if count and not undefined else math.nan


def class_f1(comm: Communicator, logits_NY: Tensor, labels_N: Tensor) -> float:
    """Return the macro F1: the mean F1 of the classes that are some row's label or prediction."""
    return macro_f1_of(comm, *guesses(logits_NY), labels_N, logits_NY.shape[1])


def macro_f1_of(
    comm: Communicator, guess_N: Tensor, undefined: Tensor, labels_N: Tensor, num_classes: int
) -> float:
    """Return `class_f1` of such guesses; nan if they are undefined on any rank."""
    most = int(labels_N.max()) + 1 if len(labels_N) else 0
    most = comm.allreduce(max(most, num_classes), "max", where="classes")
    hits_Y, guessed_Y, true_Y = (
        torch.bincount(rows, minlength=most)
        for rows in (labels_N[guess_N == labels_N], guess_N, labels_N)
    )
    counts = _summed(comm, [hits_Y, guessed_Y, true_Y], undefined)
    return math.nan if counts is None else _mean_of_present(*counts)


def micro_f1(comm: Communicator, logits_NT: Tensor, labels_NT: Tensor) -> float:
    """Return 2 TP / (2 TP + FP + FN) over all known (row, label) pairs; 0 without any 1."""
    counts = _label_counts(comm, logits_NT, labels_NT)
    if counts is None:
        return math.nan
    hits, guessed, true = (int(count_T.sum()) for count_T in counts)
    return 2 * hits / (guessed + true) if guessed + true else 0.0


def macro_f1(comm: Communicator, logits_NT: Tensor, labels_NT: Tensor) -> float:
    """Return the mean F1 of the labels; it is 0 for a label without true or predicted ones."""
    counts = _label_counts(comm, logits_NT, labels_NT)
    if counts is None:
        return math.nan
    hits_T, guessed_T, true_T = counts
    return float((2 * hits_T / np.maximum(guessed_T + true_T, 1)).mean())


def _label_counts(
    comm: Communicator, logits_NT: Tensor, labels_NT: Tensor
) -> list[np.ndarray] | None:
    """Return the true positives, predicted ones and true ones of each label, over known entries."""
    known, truth, guess = labels_NT >= 0, labels_NT == 1, logits_NT > 0
    undefined = (logits_NT.isnan() & known).any()
    seen = [guess & truth, guess & known, truth, known]
    counts = _summed(comm, [rows.sum(dim=0) for rows in seen], undefined)
    return None if counts is None or not counts[3].any() else counts[:3]


def _summed(comm: Communicator, counts: list[Tensor], undefined: Tensor) -> list[np.ndarray] | None:
    """Return the counts over all ranks, or None if all are 0 or any value is undefined anywhere."""
    local = torch.cat([*counts, undefined.long().reshape(1)]).cpu().numpy()
    total = comm.allreduce(local, where="F1")
    if total[-1] or not total[:-1].any():
        return None
    return np.split(total[:-1], len(counts))


def _mean_of_present(hits_Y: np.ndarray, guessed_Y: np.ndarray, true_Y: np.ndarray) -> float:
    there = guessed_Y + true_Y > 0
    return float((2 * hits_Y[there] / (guessed_Y + true_Y)[there]).mean())


def roc_auc(comm: Communicator, scores_N: Tensor, positive_N: Tensor) -> float:
    """Return the area under the ROC curve: the share of (positive, negative) pairs in order.

    Ties count half.
    """
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
    """Return the sum over thresholds of precision times the recall gained there."""
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
    """Return positive and negative rows at each score of this rank's share: `[u, 2]`, ascending."""
    if _any_nan(comm, scores_N):
        return None
    positive = positive_N.detach().cpu().numpy().astype(bool)
    values = scores_N.detach().cpu().double().numpy()
    counts = np.stack([positive, ~positive], axis=1).astype(np.int64)
    return tally(comm, values, counts)[1]


def _any_nan(comm: Communicator, scores: Tensor) -> bool:
    return bool(comm.allreduce(int(scores.isnan().any()), op="max", where="NaN scores"))


def mean_over_labels(area: Area, comm: Communicator, scores_NT: Tensor, labels_NT: Tensor) -> float:
    """Return the mean of an area over labels with both a 1 and a 0 known, as in OGB's evaluator."""
    if _any_nan(comm, scores_NT[labels_NT >= 0]):
        return math.nan
    ups, downs = ((labels_NT == value).sum(dim=0).cpu().numpy() for value in (1, 0))
    counts = comm.allreduce(np.stack([ups, downs]), where="labels to be scored")
    found = []
    for t in np.flatnonzero((counts > 0).all(axis=0)).tolist():
        known = labels_NT[:, t] >= 0
        found.append(area(comm, scores_NT[known, t], labels_NT[known, t] == 1))
    return float(np.mean(found)) if found else math.nan


def mean_reciprocal_rank(comm: Communicator, true_N: Tensor, false_NM: Tensor) -> float:
    """Return the mean of 1 / rank of each true pair among its own false pairs; ties count half.

    Args:
        true_N: the scores of this rank's true pairs.
        false_NM: the scores of the M false pairs of each.
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
    """Return for each k of `most` the share of true pairs above the k-th highest false pair.

    It is 1 if there are fewer than k false pairs.
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


def mean_absolute_error(comm: Communicator, found_NT: Tensor, true_NT: Tensor) -> float:
    """Return the mean of |found - true| per column, averaged over columns."""
    values = _Values.of(comm, found_NT, true_NT)
    return values.averaged(values.mean(np.abs(values.found - values.true)))


def root_mean_squared_error(comm: Communicator, found_NT: Tensor, true_NT: Tensor) -> float:
    """Return the square root of the mean of (found - true)^2 per column, averaged over columns."""
    values = _Values.of(comm, found_NT, true_NT)
    return values.averaged(np.sqrt(values.mean((values.found - values.true) ** 2)))


def r2(comm: Communicator, found_NT: Tensor, true_NT: Tensor) -> float:
    """Return 1 - (squared errors) / (squared distances from the mean), averaged over columns.

    A column with a single known value gives nan. One whose true values are all the same gives 1 if
    they were found, else 0.
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
    """This rank's values, float64 `[n, T]`, and the number known in each column over all ranks."""

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
        """Return each column's mean over the known values of all ranks; nan if not finite."""
        sums_T = np.where(self.known, values_NT, 0).sum(axis=0)
        total_T = self.comm.allreduce(sums_T, where="deviations")
        mean_T: np.ndarray = total_T / np.maximum(self.count_T, 1)
        return np.where(np.isfinite(mean_T), mean_T, math.nan)

    def averaged(self, values_T: np.ndarray) -> float:
        """Return the mean over the columns that have known values."""
        there = self.count_T > 0
        return float(values_T[there].mean()) if there.any() else math.nan


def _width(rows: Tensor) -> int:
    return rows.shape[1] if rows.dim() == 2 else 1
