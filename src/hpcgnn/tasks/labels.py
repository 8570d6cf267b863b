"""Several labels at once: binary cross entropy; F1, ROC AUC, average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.tasks import curves, metrics
from hpcgnn.tasks.labelled import Labelled

LABEL_METRICS = ("f1", "macro_f1", "auc", "average_precision")


@dataclass
class MultiLabel(Labelled):
    """Each of `num_outputs` labels is there or not (int8 `[n, T]`: 0, 1, -1 unknown).

    Attributes:
        positive_weights: weight of a 1 of each label in the loss, or one for all.

    Raises:
        InputError: weights that don't fit the number of labels.
    """

    metric: str = "f1"
    positive_weights: tuple[float, ...] | None = None

    kind = "labels"
    larger_is_better = True

    def check(self) -> None:
        weights = self.positive_weights
        if weights is not None and len(weights) not in (1, self.num_outputs):
            raise InputError(
                f"positive weights must be 1 or {self.num_outputs} numbers", value=len(weights)
            )

    def fits(self, answers: Tensor) -> bool:
        several = answers.dim() == 2 and answers.shape[1] == self.num_outputs
        return several and not answers.is_floating_point()

    def known(self, answers: Tensor) -> Tensor:
        return (answers >= 0).any(dim=1)

    def share(
        self, comm: Communicator, output: Tensor, answers: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        positive = self.positive_weights
        total = functional.binary_cross_entropy_with_logits(
            output,
            answers.to(output.dtype).clamp(min=0),
            (answers >= 0).to(output.dtype),
            pos_weight=None if positive is None else output.new_tensor(positive),
            reduction="sum",
        )
        count = comm.allreduce(len(answers), where="targets")
        return total / output.shape[1] / max(count, 1)

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        return {
            "probabilities": torch.sigmoid(output).cpu().numpy(),
            "classes": (output > 0).to(torch.int8).cpu().numpy(),
        }

    def scores(self, comm: Communicator, output: Tensor, answers: Tensor) -> dict[str, float]:
        found = {
            "f1": metrics.micro_f1(comm, output, answers),
            "macro_f1": metrics.macro_f1(comm, output, answers),
        }
        if self.metric in ("auc", "average_precision"):  # a sort over the ranks for each label
            area = curves.roc_auc if self.metric == "auc" else curves.average_precision
            found[self.metric] = curves.mean_over_labels(area, comm, output, answers)
        return found

    def decided(self, comm: Communicator, answers: Tensor) -> bool:
        kinds = [(answers == value).sum(dim=0) for value in (0, 1)]
        zeros_T, ones_T = comm.allreduce(
            torch.stack(kinds).cpu().numpy(), where="nodes to be scored"
        )
        if self.metric in ("auc", "average_precision"):
            return bool(((zeros_T > 0) & (ones_T > 0)).any())
        return bool((zeros_T + ones_T).any())
