"""Metrics over the ranks compared with scikit-learn's on one process."""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from hpcgnn.tasks import metrics
from hpcgnn.tasks.metrics import tally
from tests.late import Late

truth = Late("sklearn.metrics")

pytestmark = pytest.mark.mpi


def shares(comm, count: int, seed: int) -> np.ndarray:
    """Return this rank's scattered rows; with three ranks or more, rank 1 has none."""
    owner = np.random.default_rng(seed).integers(0, comm.size, count)
    if comm.size >= 3:
        owner[owner == 1] = 0
    return np.flatnonzero(owner == comm.rank)


def over_ranks(comm, function, *arrays: np.ndarray) -> float:
    """Return `function` of this rank's share of the rows."""
    mine = shares(comm, len(arrays[0]), 1)
    return function(comm, *(torch.from_numpy(array[mine]) for array in arrays))


def expected(function, *arguments, **options) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


@pytest.mark.parametrize("count, levels", [(0, 1), (1, 1), (2, 1), (7, 2), (300, 5), (300, 9999)])
def test_areas_under_curves_equal_scikit_learns(comm, count, levels):
    rng = np.random.default_rng(count + levels)
    scores = rng.integers(0, levels, count).astype(np.float32)
    positive = rng.random(count) < 0.3
    found = [
        over_ranks(comm, f, scores, positive) for f in (metrics.roc_auc, metrics.average_precision)
    ]
    areas = [math.nan, math.nan]
    if positive.any():
        areas[1] = expected(truth.average_precision_score, positive, scores)
        if not positive.all():
            areas[0] = expected(truth.roc_auc_score, positive, scores)
    np.testing.assert_allclose(found, areas, rtol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_roc_auc_of_perfect_orders(comm, order):
    scores = np.concatenate([np.zeros(40), np.arange(1, 61)]).astype(np.float32)
    assert over_ranks(comm, metrics.roc_auc, order * scores, scores > 0) == (order == 1)


def test_no_rank_gets_all_of_equal_scores(comm):
    """However many rows share a score, each rank sends it once."""
    values, counts = tally(comm, np.full(500, 2.0), np.ones((500, 1), np.int64))
    assert len(values) <= 1
    assert comm.allreduce(int(counts.sum())) == 500 * comm.size


@pytest.mark.parametrize("count, highest", [(0, 4), (1, 4), (50, 1), (50, 4), (50, 6)])
def test_metrics_of_classes_equal_scikit_learns(comm, count, highest):
    rng = np.random.default_rng(count)
    logits, labels = rng.normal(size=(count, 4)), rng.integers(0, highest, count)
    found = [over_ranks(comm, f, logits, labels) for f in (metrics.accuracy, metrics.class_f1)]
    guess = logits.argmax(1)
    right = [math.nan, math.nan]
    if count:
        right = [
            truth.accuracy_score(labels, guess),
            expected(truth.f1_score, labels, guess, average="macro"),
        ]
    np.testing.assert_allclose(found, right)


def test_metrics_of_several_labels_equal_scikit_learns(comm):
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (80, 5)).astype(np.float32)
    labels = rng.integers(0, 2, (80, 5)).astype(np.int8)
    labels[:, 4], logits[:, 4] = 0, -1  # neither a 1 nor a guess
    guess = logits > 0
    for average, function in (("micro", metrics.micro_f1), ("macro", metrics.macro_f1)):
        right = expected(truth.f1_score, labels, guess, average=average)
        np.testing.assert_allclose(over_ranks(comm, function, logits, labels), right)
    labels[rng.random((80, 5)) < 0.3] = -1
    known = labels >= 0
    micro = truth.f1_score(labels[known], guess[known])
    np.testing.assert_allclose(over_ranks(comm, metrics.micro_f1, logits, labels), micro)
    for area, score in (
        (metrics.roc_auc, truth.roc_auc_score),
        (metrics.average_precision, truth.average_precision_score),
    ):
        areas = [score(labels[known[:, t], t], logits[known[:, t], t]) for t in range(4)]
        found = over_ranks(comm, partial(metrics.mean_over_labels, area), logits, labels)
        np.testing.assert_allclose(found, np.mean(areas))


def test_labels_that_are_all_zero_or_unknown(comm):
    nothing = torch.full((3, 2), -1.0)
    for function in (metrics.micro_f1, metrics.macro_f1):
        assert function(comm, nothing, torch.zeros(3, 2, dtype=torch.int8)) == 0
        assert math.isnan(function(comm, nothing, torch.full((3, 2), -1, dtype=torch.int8)))


@pytest.mark.parametrize("count", [0, 1, 2, 60])
@pytest.mark.parametrize("width, case", [(None, ""), (3, "constant"), (3, "found")])
def test_metrics_of_values_equal_scikit_learns(comm, count, width, case):
    rng = np.random.default_rng(count)
    shape = (count,) if width is None else (count, width)
    true, found = rng.normal(size=(2, *shape))
    if case == "constant" and width:
        true[:, 0] = 7
    if case == "found" and width:
        true[:, 1] = found[:, 1] = 3
    right = [math.nan] * 3
    if count:
        right = [
            truth.mean_absolute_error(true, found),
            truth.root_mean_squared_error(true, found),
            expected(truth.r2_score, true, found),
        ]
    functions = (
        metrics.mean_absolute_error,
        metrics.root_mean_squared_error,
        metrics.r2,
    )
    seen = [over_ranks(comm, function, found, true) for function in functions]
    np.testing.assert_allclose(seen, right, rtol=1e-11)


def test_unknown_values_are_ignored(comm):
    rng = np.random.default_rng(2)
    true, found = rng.normal(size=(2, 70, 3))
    true[rng.random((70, 3)) < 0.4] = np.nan
    true[:, 2] = np.nan
    known = ~np.isnan(true)
    columns = [(true[known[:, t], t], found[known[:, t], t]) for t in range(2)]
    for function, score in (
        (metrics.mean_absolute_error, truth.mean_absolute_error),
        (metrics.root_mean_squared_error, truth.root_mean_squared_error),
        (metrics.r2, truth.r2_score),
    ):
        right = np.mean([score(*column) for column in columns])
        np.testing.assert_allclose(over_ranks(comm, function, found, true), right)
        broken = found.copy()
        broken[np.argmax(known[:, 0]), 0] = np.inf
        assert math.isnan(over_ranks(comm, function, broken, true))


def ogb_ranks(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Return ranks as `ogb.linkproppred.Evaluator` does: half way between best and worst tie."""
    above, level = ((f(false, true[:, None])).sum(1) for f in (np.greater, np.greater_equal))
    return 0.5 * (above + level) + 1


@pytest.mark.parametrize("count, levels", [(0, 3), (1, 3), (40, 1), (40, 3), (40, 999)])
def test_mean_reciprocal_rank_of_true_pairs(comm, count, levels):
    rng = np.random.default_rng(count)
    true = rng.integers(0, levels, count).astype(np.float32)
    false = rng.integers(0, levels, (count, 6)).astype(np.float32)
    found = over_ranks(comm, metrics.mean_reciprocal_rank, true, false)
    right = (1 / ogb_ranks(true, false)).mean() if count else math.nan
    np.testing.assert_allclose(found, right)


@pytest.mark.parametrize("false_count, levels", [(0, 3), (1, 3), (90, 1), (90, 3), (90, 999)])
def test_hits_at_k(comm, false_count, levels):
    rng = np.random.default_rng(false_count)
    true = rng.integers(0, levels, 50).astype(np.float32)
    false = rng.integers(0, levels, false_count).astype(np.float32)
    most = [1, 2, 10, 90, 91]
    rows = torch.from_numpy(true[shares(comm, 50, 1)])
    others = torch.from_numpy(false[shares(comm, false_count, 2)])
    right = [float((true > np.sort(false)[-k]).mean()) if k <= false_count else 1.0 for k in most]
    assert metrics.hits_at(comm, rows, others, most) == pytest.approx(right)
    nothing = metrics.hits_at(comm, rows[:0], others, most)
    assert np.isnan(nothing).all()


def test_a_nan_score_anywhere_leaves_every_metric_undefined(comm):
    """A NaN on one rank makes the metric undefined on all."""
    scores, labels = torch.rand(6, 2), torch.tensor([[0, 1], [1, 0]] * 3, dtype=torch.int8)
    if comm.rank == 0:
        scores[2, 1] = torch.nan
    auc = partial(metrics.mean_over_labels, metrics.roc_auc)
    assert math.isnan(metrics.roc_auc(comm, scores[:, 1], labels[:, 1] == 1))
    assert math.isnan(metrics.average_precision(comm, scores[:, 1], labels[:, 1] == 1))
    assert math.isnan(metrics.mean_reciprocal_rank(comm, scores[:, 0], scores))
    assert np.isnan(metrics.hits_at(comm, scores[:, 0], scores[:, 1], [1, 3])).all()
    for function in (auc, metrics.micro_f1, metrics.macro_f1):
        assert math.isnan(function(comm, scores, labels))
    for function in (metrics.accuracy, metrics.class_f1):
        assert math.isnan(function(comm, scores, labels[:, 1].long()))
    labels[2, 1] = -1  # the label is unknown, so this score is ignored
    for function in (auc, metrics.micro_f1, metrics.macro_f1):
        assert not math.isnan(function(comm, scores, labels))
