"""Accuracy and F1 over the rows of all ranks; nan without rows, and where any score is NaN."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator


def accuracy(comm: Communicator, logits_NC: Tensor, labels_N: Tensor) -> float:
    """Share of rows whose largest logit is their label."""
    right = int((logits_NC.argmax(dim=-1) == labels_N).sum())
    local = np.array([right, len(labels_N), int(logits_NC.isnan().sum())])
    hits, count, undefined = comm.allreduce(local, where="accuracy")
    return float(hits / count) if count and not undefined else math.nan


def class_f1(comm: Communicator, logits_NC: Tensor, labels_N: Tensor) -> float:
    """Macro F1: the mean F1 of the classes that are the label or the guess of a row."""
    guess_N = logits_NC.argmax(dim=-1)
    most = int(labels_N.max()) + 1 if len(labels_N) else 0
    most = comm.allreduce(max(most, logits_NC.shape[1]), "max", where="classes")
    hits_C, guessed_C, true_C = (
        torch.bincount(rows, minlength=most)
        for rows in (labels_N[guess_N == labels_N], guess_N, labels_N)
    )
    counts = _summed(comm, [hits_C, guessed_C, true_C], logits_NC.isnan().any())
    return math.nan if counts is None else _mean_of_present(*counts)


def micro_f1(comm: Communicator, logits_NT: Tensor, labels_NT: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) over all (row, label) pairs with a known label; 0 without any 1."""
    counts = _label_counts(comm, logits_NT, labels_NT)
    if counts is None:
        return math.nan
    hits, guessed, true = (int(count_T.sum()) for count_T in counts)
    return 2 * hits / (guessed + true) if guessed + true else 0.0


def macro_f1(comm: Communicator, logits_NT: Tensor, labels_NT: Tensor) -> float:
    """The mean over labels of their F1, which is 0 where a label has neither a 1 nor a guess."""
    counts = _label_counts(comm, logits_NT, labels_NT)
    if counts is None:
        return math.nan
    hits_T, guessed_T, true_T = counts
    return float((2 * hits_T / np.maximum(guessed_T + true_T, 1)).mean())


def _label_counts(
    comm: Communicator, logits_NT: Tensor, labels_NT: Tensor
) -> list[np.ndarray] | None:
    """For each label how often it was found, guessed and true, where it is known."""
    known, truth, guess = labels_NT >= 0, labels_NT == 1, logits_NT > 0
    undefined = (logits_NT.isnan() & known).any()
    seen = [guess & truth, guess & known, truth, known]
    counts = _summed(comm, [rows.sum(dim=0) for rows in seen], undefined)
    return None if counts is None or not counts[3].any() else counts[:3]


def _summed(comm: Communicator, counts: list[Tensor], undefined: Tensor) -> list[np.ndarray] | None:
    """The counts over all ranks; None where all are 0, or anything is undefined anywhere."""
    local = torch.cat([*counts, undefined.long().reshape(1)]).cpu().numpy()
    total = comm.allreduce(local, where="F1")
    if total[-1] or not total[:-1].any():
        return None
    return np.split(total[:-1], len(counts))


def _mean_of_present(hits_C: np.ndarray, guessed_C: np.ndarray, true_C: np.ndarray) -> float:
    there = guessed_C + true_C > 0
    return float((2 * hits_C[there] / (guessed_C + true_C)[there]).mean())
