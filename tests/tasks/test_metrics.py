"""Metrics over the ranks against brute force on one process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpcgnn.tasks import metrics

pytestmark = pytest.mark.mpi


def shares(comm, count: int, seed: int) -> np.ndarray:
    """Rows of this rank, scattered; with three ranks or more, rank 1 has none."""
    owner = np.random.default_rng(seed).integers(0, comm.size, count)
    if comm.size >= 3:
        owner[owner == 1] = 0
    return np.flatnonzero(owner == comm.rank)


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order; ties count half."""
    ups, downs = scores[positive][:, None], scores[~positive][None, :]
    if ups.size == 0 or downs.size == 0:
        return math.nan
    return float(((ups > downs) + 0.5 * (ups == downs)).mean())


@pytest.mark.parametrize("count", [0, 1, 2, 7, 300])
@pytest.mark.parametrize("levels", [1, 2, 5, 10_000])
def test_roc_auc(comm, count, levels):
    rng = np.random.default_rng(count + levels)
    scores = rng.integers(0, levels, count).astype(np.float32)
    positive = rng.random(count) < 0.3
    mine = shares(comm, count, 1)
    found = metrics.roc_auc(comm, torch.from_numpy(scores[mine]), torch.from_numpy(positive[mine]))
    np.testing.assert_allclose(found, area(scores, positive), rtol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_roc_auc_of_perfect_orders(comm, order):
    scores = np.concatenate([np.zeros(40), np.arange(1, 61)]).astype(np.float32)
    mine = shares(comm, 100, 2)
    found = metrics.roc_auc(
        comm, torch.from_numpy(order * scores[mine]), torch.from_numpy(scores[mine] > 0)
    )
    assert found == (1.0 if order == 1 else 0.0)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_accuracy(comm, count):
    rng = np.random.default_rng(count)
    logits, labels = rng.normal(size=(count, 4)), rng.integers(0, 4, count)
    mine = shares(comm, count, 3)
    found = metrics.accuracy(comm, torch.from_numpy(logits[mine]), torch.from_numpy(labels[mine]))
    expected = (logits.argmax(1) == labels).mean() if count else math.nan
    np.testing.assert_allclose(found, expected)


def test_micro_f1_and_mean_auc(comm):
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (80, 5)).astype(np.float32)
    labels = rng.integers(-1, 2, (80, 5)).astype(np.int8)
    labels[:, 4] = 0  # no positive: no area
    mine = shares(comm, 80, 4)
    arguments = comm, torch.from_numpy(logits[mine]), torch.from_numpy(labels[mine])
    known, guess, truth = labels >= 0, logits > 0, labels == 1
    precision = (guess & truth)[known].sum() / guess[known].sum()
    recall = (guess & truth)[known].sum() / truth[known].sum()
    expected = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(metrics.micro_f1(*arguments), expected)
    areas = [area(logits[known[:, t], t], truth[known[:, t], t]) for t in range(4)]
    np.testing.assert_allclose(metrics.mean_roc_auc(*arguments), np.mean(areas))


def test_micro_f1_without_positives_or_labels(comm):
    nothing = torch.full((3, 2), -1.0)
    assert metrics.micro_f1(comm, nothing, torch.zeros(3, 2, dtype=torch.int8)) == 1.0
    assert math.isnan(metrics.micro_f1(comm, nothing, torch.full((3, 2), -1, dtype=torch.int8)))


def test_a_nan_score_anywhere_leaves_every_metric_undefined(comm):
    """On one rank alone: all of them say so."""
    scores, labels = torch.rand(6, 2), torch.tensor([[0, 1], [1, 0]] * 3, dtype=torch.int8)
    if comm.rank == 0:
        scores[2, 1] = torch.nan
    assert math.isnan(metrics.roc_auc(comm, scores[:, 1], labels[:, 1] == 1))
    assert math.isnan(metrics.mean_roc_auc(comm, scores, labels))
    assert math.isnan(metrics.micro_f1(comm, scores, labels))
    assert math.isnan(metrics.accuracy(comm, scores, labels[:, 1].long()))
    labels[2, 1] = -1  # of an unknown label
    assert not math.isnan(metrics.mean_roc_auc(comm, scores, labels))
    assert not math.isnan(metrics.micro_f1(comm, scores, labels))
