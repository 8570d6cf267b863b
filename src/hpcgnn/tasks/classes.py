"""What is learned: one class per node or several labels at once; its loss and its metric."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks import curves, metrics

_MOST_OUTPUTS = 1 << 24


@dataclass(frozen=True)
class Task:
    """Loss and metric over all ranks.

    Attributes:
        num_outputs: classes, or labels at once.
        multilabel: labels are int8 `[n, T]`.
        metric: `accuracy`, `auc` or `f1`.
        train_count: labelled training nodes of the whole graph.
    """

    num_outputs: int
    multilabel: bool
    metric: str
    train_count: int

    def loss(self, logits: Tensor, labels: Tensor, count: int) -> Tensor:
        """This rank's share of the mean loss over `count` nodes of all ranks."""
        if not self.multilabel:
            total = functional.cross_entropy(logits, labels, reduction="sum")
        else:
            known = labels >= 0
            total = functional.binary_cross_entropy_with_logits(
                logits,
                labels.to(logits.dtype).clamp(min=0),
                known.to(logits.dtype),
                reduction="sum",
            )
            total = total / logits.shape[1]
        return total / max(count, 1)

    @staticmethod
    def of(values: dict[str, Any], path: Path) -> Task:
        """The task that a checkpoint stores; without training nodes.

        Raises:
            InputError: what is stored can't be.
        """
        outputs, several, metric = (
            values.get(name) for name in ("num_outputs", "multilabel", "metric")
        )
        good = several in (0, 1) and metric in ("accuracy", "auc", "f1")
        if not good or type(outputs) is not int or not 1 <= outputs <= _MOST_OUTPUTS:
            raise InputError("its task can't be", file=path, value=values)
        return Task(outputs, bool(several), chosen_metric(str(metric), bool(several), outputs), 0)

    def fits_labels(self, graph: PartitionedGraph) -> bool:
        """Whether the labels of a graph, maybe not the one trained on, can be compared at all."""
        labels = graph.labels
        if labels is None or self.multilabel != (labels.dim() == 2):
            return False
        if self.multilabel:
            return labels.shape[1] == self.num_outputs
        return self.metric != "auc" or graph.num_classes <= self.num_outputs

    @property
    def num_labels(self) -> int:
        """Columns of the labels."""
        return self.num_outputs if self.multilabel else 1

    def stored(self) -> dict[str, int | str]:
        """What prediction needs to know of it, for checkpoints."""
        return {
            "num_outputs": self.num_outputs,
            "multilabel": int(self.multilabel),
            "metric": self.metric,
        }

    def is_scored(self, graph: PartitionedGraph, mask: Tensor) -> bool:
        """Whether the metric is defined on the nodes of `mask`, which their labels alone decide."""
        comm, labels = graph.ring.comm, graph.labels
        if labels is None:
            return False
        labels = labels[labelled(labels, mask)].reshape(-1, self.num_labels)
        classes = [(labels == value).sum(dim=0) for value in (0, 1)]
        found = torch.stack([*classes, (labels >= 0).sum(dim=0)]).cpu().numpy()
        zeros_T, ones_T, known_T = comm.allreduce(found, where="nodes to be scored")
        if self.metric == "auc":
            return bool(((zeros_T > 0) & (ones_T > 0)).any())
        return bool(known_T.any())

    def score(self, graph: PartitionedGraph, logits: Tensor, mask: Tensor) -> float:
        """The metric over the labelled nodes of `mask`, of all ranks; nan without any."""
        comm, labels = graph.ring.comm, graph.labels
        if labels is None:
            return float("nan")
        rows = labelled(labels, mask)
        logits, labels = logits[rows], labels[rows]
        if self.multilabel:
            if self.metric == "auc":
                return curves.mean_over_labels(curves.roc_auc, comm, logits, labels)
            return metrics.micro_f1(comm, logits, labels)
        if self.metric == "auc":
            return curves.roc_auc(comm, logits[:, 1] - logits[:, 0], labels == 1)
        return metrics.accuracy(comm, logits, labels)


def labelled(labels: Tensor, mask: Tensor) -> Tensor:
    """Local rows in `mask` with a known label: int64 `[m]`."""
    known = labels >= 0 if labels.dim() == 1 else (labels >= 0).any(dim=1)
    return torch.nonzero(mask & known).flatten()


def find_task(graph: PartitionedGraph, metric: str) -> Task:
    """The task that the graph's labels pose; collective.

    Raises:
        InputError: no labels, no labelled training node, or a metric that doesn't fit.
    """
    comm, labels = graph.ring.comm, graph.labels
    if labels is None or graph.train_mask is None:
        raise InputError("the graph has no labels or no split, so nothing can be learned from it")
    multilabel = labels.dim() == 2
    count = comm.allreduce(len(labelled(labels, graph.train_mask)), where="training nodes")
    if count == 0:
        raise InputError("no training node has a label; choose another --split")
    num_outputs = labels.shape[1] if multilabel else graph.num_classes
    metric = chosen_metric(metric, multilabel, num_outputs)
    return Task(num_outputs, multilabel, metric, count)


def chosen_metric(metric: str, multilabel: bool, num_outputs: int) -> str:
    """`accuracy`, `auc` or `f1`.

    Raises:
        InputError: one that doesn't fit the labels.
    """
    if metric == "auto":
        return "f1" if multilabel else "accuracy"
    if metric == "auc" and not multilabel and num_outputs != 2:
        raise InputError("--metric auc needs two classes", value=num_outputs)
    if metric == "f1" and not multilabel:
        raise InputError("--metric f1 needs several labels per node; use accuracy")
    if metric == "accuracy" and multilabel:
        raise InputError("--metric accuracy needs one class per node; use f1 or auc")
    return metric
