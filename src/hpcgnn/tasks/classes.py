"""Tasks with one class per row, or with several labels per row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.tasks import metrics
from hpcgnn.tasks.settings import checked_weights
from hpcgnn.tasks.task import Labelled, checked

CLASS_METRICS = ("accuracy", "f1", "macro_f1", "auc", "average_precision")
_CHECK = "classes of training"
LABEL_METRICS = ("f1", "macro_f1", "auc", "average_precision")


@dataclass
class MultiClass(Labelled):
    """The task of finding one of `num_outputs` classes (int64 `[n]`, -1 unknown).

    Micro F1 (`f1`) is then equal to the accuracy. `auc` and `average_precision` are computed for
    class 1 against class 0.

    Attributes:
        class_weights: weight of each class in the loss, as in torch's cross entropy.
        label_smoothing: the share of each target that is spread over all classes.

    Raises:
        InputError: the metric or the weights don't fit the number of classes.
    """

    metric: str = "accuracy"
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    kind = "classes"
    larger_is_better = True

    def check(self) -> None:
        self.metric = checked(self.metric, CLASS_METRICS, "classes")
        if self.metric in ("auc", "average_precision") and self.num_outputs != 2:
            raise InputError(f"--metric {self.metric} needs two classes", value=self.num_outputs)
        share = self.label_smoothing
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
            raise InputError("label_smoothing must be in [0, 1]", value=share)
        if self.class_weights is None:
            return
        self.class_weights = checked_weights(self.class_weights, "class_weights")
        if len(self.class_weights) != self.num_outputs:
            raise InputError(
                f"class weights must be {self.num_outputs} numbers, one per class",
                value=len(self.class_weights),
            )

    def check_answers(self, comm: Communicator, answers: Tensor) -> None:
        """Refuse classes that the output has no column for, and weights that are all 0."""
        answers = answers.long().cpu()
        most = comm.allreduce(int(answers.max()) if len(answers) else -1, "max", where=_CHECK)
        if most >= self.num_outputs:
            raise InputError(
                f"the training labels include class {most}, but the task has {self.num_outputs} "
                "outputs"
            )
        if self.class_weights is None:
            return
        own = float(torch.tensor(self.class_weights).double()[answers].sum())
        if comm.allreduce(own, where=_CHECK) == 0:
            raise InputError(
                "--class-weights are 0 for all classes in training", value=self.class_weights
            )

    def fits(self, answers: Tensor) -> bool:
        return answers.dim() == 1 and not answers.is_floating_point()

    def known(self, answers: Tensor) -> Tensor:
        return answers >= 0

    def share(
        self, comm: Communicator, output: Tensor, answers: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        weight_Y, count = None, float(len(answers))
        if self.class_weights is not None:
            weight_Y = output.new_tensor(self.class_weights)
            count = float(weight_Y[answers].double().sum())
        total = functional.cross_entropy(
            output,
            answers.long(),
            weight=weight_Y,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        count = comm.allreduce(count, where="targets")
        return total / (count if count > 0 else 1)

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        return {
            "probabilities": torch.softmax(output, dim=-1).cpu().numpy(),
            "classes": output.argmax(dim=-1).cpu().numpy(),
        }

    def scores(self, comm: Communicator, output: Tensor, answers: Tensor) -> dict[str, float]:
        answers = answers.long()
        guesses = metrics.guesses(output)
        accuracy = metrics.share_right(comm, *guesses, answers)
        found = {"accuracy": accuracy, "f1": accuracy}
        found["macro_f1"] = metrics.macro_f1_of(comm, *guesses, answers, output.shape[1])
        if self.metric in ("auc", "average_precision"):
            area = metrics.roc_auc if self.metric == "auc" else metrics.average_precision
            several = comm.allreduce(int((answers > 1).sum()), where="classes")
            value = area(comm, output[:, 1] - output[:, 0], answers == 1)
            found[self.metric] = math.nan if several else value
        return found

    def decided(self, comm: Communicator, answers: Tensor) -> bool:
        kinds = [(answers == 0).sum(), (answers == 1).sum(), (answers > 1).sum()]
        zeros, ones, more = comm.allreduce(
            torch.stack(kinds).cpu().numpy(), where="nodes to be scored"
        )
        if self.metric == "auc":
            return bool(zeros and ones and not more)
        return (
            bool(ones and not more)
            if self.metric == "average_precision"
            else bool(zeros or ones or more)
        )


@dataclass
class MultiLabel(Labelled):
    """The task of finding which of `num_outputs` labels apply (int8 `[n, T]`: 0, 1, -1 unknown).

    Attributes:
        positive_weights: weight of the ones of each label in the loss, or one weight for all.

    Raises:
        InputError: the weights don't fit the number of labels.
    """

    metric: str = "f1"
    positive_weights: tuple[float, ...] | None = None

    kind = "labels"
    larger_is_better = True

    def check(self) -> None:
        self.metric = checked(self.metric, LABEL_METRICS, "several labels")
        if self.positive_weights is None:
            return
        self.positive_weights = checked_weights(self.positive_weights, "positive_weights")
        count = len(self.positive_weights)
        if count not in (1, self.num_outputs):
            raise InputError(
                f"positive weights must be 1 or {self.num_outputs} numbers", value=count
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
        if self.metric in ("auc", "average_precision"):  # one sort over the ranks per label
            area = metrics.roc_auc if self.metric == "auc" else metrics.average_precision
            found[self.metric] = metrics.mean_over_labels(area, comm, output, answers)
        return found

    def decided(self, comm: Communicator, answers: Tensor) -> bool:
        kinds = [(answers == value).sum(dim=0) for value in (0, 1)]
        zeros_T, ones_T = comm.allreduce(
            torch.stack(kinds).cpu().numpy(), where="nodes to be scored"
        )
        if self.metric in ("auc", "average_precision"):
            return bool(((zeros_T > 0) & (ones_T > 0)).any())
        return bool((zeros_T + ones_T).any())
