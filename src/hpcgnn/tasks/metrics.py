"""Accuracy, ROC AUC and micro F1 over the nodes of all ranks; nan where any score is NaN."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator


def accuracy(comm: Communicator, logits_NC: Tensor, labels_N: Tensor) -> float:
    """Share of nodes whose largest logit is their label; nan without nodes."""
    right = int((logits_NC.argmax(dim=-1) == labels_N).sum())
    local = np.array([right, len(labels_N), int(logits_NC.isnan().sum())])
    hits, count, undefined = comm.allreduce(local, where="accuracy")
    return float(hits / count) if count and not undefined else float("nan")


def micro_f1(comm: Communicator, logits_NT: Tensor, labels_NT: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) over all (node, label) pairs with a known label; nan without."""
    known, truth, guess = labels_NT >= 0, labels_NT == 1, logits_NT > 0
    local = [
        int((guess & truth & known).sum()),
        int((guess & ~truth & known).sum()),
        int((~guess & truth & known).sum()),
        int(known.sum()),
        int((logits_NT.isnan() & known).sum()),
    ]
    hits, false, missed, count, undefined = comm.allreduce(np.array(local), where="F1")
    if undefined:
        return float("nan")
    total = 2 * hits + false + missed
    return float(2 * hits / total) if total else (1.0 if count else float("nan"))


def _any_nan(comm: Communicator, scores: Tensor) -> bool:
    """Whether any rank has a NaN among its scores: they have no order then."""
    return bool(comm.allreduce(int(scores.isnan().any()), op="max", where="NaN scores"))


def roc_auc(comm: Communicator, scores_N: Tensor, positive_N: Tensor) -> float:
    """Area under the ROC curve, ties counted half; nan where a class is missing.

    Scores are sorted over the ranks by sampled splitters, so that no rank holds them all; equal
    scores always meet on one rank, and the result is exact.
    """
    if _any_nan(comm, scores_N):
        return float("nan")
    order = np.argsort(scores := scores_N.detach().cpu().numpy().astype(np.float64), kind="stable")
    scores, positive = scores[order], positive_N.cpu().numpy().astype(bool)[order]
    sample = scores[np.linspace(0, len(scores) - 1, min(len(scores), 64)).astype(int)]
    samples = np.sort(np.concatenate(comm.allgather(sample, where="AUC splitters")))
    cuts = [samples[len(samples) * k // comm.size] for k in range(1, comm.size) if len(samples)]
    bounds = [0, *np.searchsorted(scores, cuts, side="left"), len(scores)]
    bounds += [len(scores)] * (comm.size + 1 - len(bounds))
    sent = [slice(bounds[p], bounds[p + 1]) for p in range(comm.size)]
    scores = np.concatenate(comm.alltoallv([scores[s] for s in sent], where="AUC scores"))
    signs = [positive[s].astype(np.int8) for s in sent]
    truth = np.concatenate(comm.alltoallv(signs, where="AUC labels"))
    _, place = np.unique(scores, return_inverse=True)
    ups = np.bincount(place[truth == 1], minlength=1 if not len(place) else place.max() + 1)
    downs = np.bincount(place[truth == 0], minlength=len(ups))
    below_here = np.cumsum(downs) - downs
    totals = comm.allgather((int(ups.sum()), int(downs.sum())), where="AUC counts")
    below = sum(down for _, down in totals[: comm.rank])
    local = float((ups * (below + below_here + downs / 2)).sum())
    area = comm.allreduce(local, where="AUC")
    pairs = sum(up for up, _ in totals) * sum(down for _, down in totals)
    return area / pairs if pairs else float("nan")


def mean_roc_auc(comm: Communicator, logits_NT: Tensor, labels_NT: Tensor) -> float:
    """Mean over labels of the ROC AUC, where both classes are there."""
    if _any_nan(comm, logits_NT[labels_NT >= 0]):
        return float("nan")
    areas = []
    for t in range(logits_NT.shape[1]):
        known = labels_NT[:, t] >= 0
        areas.append(roc_auc(comm, logits_NT[known, t], labels_NT[known, t] == 1))
    defined = [area for area in areas if area == area]
    return float(torch.tensor(defined, dtype=torch.float64).mean()) if defined else float("nan")
