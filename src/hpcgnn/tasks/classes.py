"""One class per node or several labels at once: loss and metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks import metrics
from hpcgnn.tasks.task import TaskDefaults, split_mask

_MOST_OUTPUTS = 1 << 24


@dataclass
class _Labelled(TaskDefaults):
    """What both have in common.

    Attributes:
        num_outputs: classes, or labels at once.
    """

    num_outputs: int = field()
    metric: str = field()
    larger_is_better = True
    multilabel = False

    def stored(self) -> dict[str, Any]:
        return {
            "num_outputs": self.num_outputs,
            "multilabel": int(self.multilabel),
            "metric": self.metric,
        }

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        """Nodes of `split` with a known label; none where the labels are of another task."""
        labels, mask = graph.labels, split_mask(graph, split)
        if labels is None or mask is None or not self._fits(graph, labels):
            return torch.zeros(0, dtype=torch.int64, device=graph.node_ids.device)
        return labelled(labels, mask)

    def is_scored(self, graph: PartitionedGraph, split: str) -> bool:
        comm, rows = graph.comm, self.targets(graph, split)
        if graph.labels is None or not self._fits(graph, graph.labels):
            return False
        labels = graph.labels[rows].reshape(-1, self.num_outputs if self.multilabel else 1)
        classes = [(labels == value).sum(dim=0) for value in (0, 1)]
        found = torch.stack([*classes, (labels >= 0).sum(dim=0)]).cpu().numpy()
        zeros_T, ones_T, known_T = comm.allreduce(found, where="nodes to be scored")
        if self.metric == "auc":
            return bool(((zeros_T > 0) & (ones_T > 0)).any())
        return bool(known_T.any())

    def metrics(
        self, graph: PartitionedGraph, output: Tensor, rows: Tensor, split: str
    ) -> dict[str, float]:
        if graph.labels is None or not self._fits(graph, graph.labels):
            return {self.metric: float("nan")}
        return {self.metric: self._score(graph, output, graph.labels[rows])}

    def _score(self, graph: PartitionedGraph, output: Tensor, labels: Tensor) -> float:
        raise NotImplementedError

    def _fits(self, graph: PartitionedGraph, labels: Tensor) -> bool:
        """Whether labels of a graph, maybe not the one trained on, can be compared at all."""
        raise NotImplementedError


@dataclass
class MultiClass(_Labelled):
    """One class per node (int64 labels `[n]`): cross entropy; accuracy or, of two classes, auc."""

    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        total = functional.cross_entropy(output, _known(graph)[rows], reduction="sum")
        return total / max(graph.comm.allreduce(len(rows), where="targets"), 1)

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        return {
            "probabilities": torch.softmax(output, dim=-1).cpu().numpy(),
            "classes": output.argmax(dim=-1).cpu().numpy(),
        }

    def _score(self, graph: PartitionedGraph, output: Tensor, labels: Tensor) -> float:
        if self.metric == "auc":
            return metrics.roc_auc(graph.comm, output[:, 1] - output[:, 0], labels == 1)
        return metrics.accuracy(graph.comm, output, labels)

    def _fits(self, graph: PartitionedGraph, labels: Tensor) -> bool:
        return labels.dim() == 1 and (self.metric != "auc" or graph.num_classes <= self.num_outputs)


@dataclass
class MultiLabel(_Labelled):
    """Several labels at once (int8 `[n, T]`, -1 unknown): binary cross entropy; micro f1 or auc."""

    multilabel = True

    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        labels = _known(graph)[rows]
        known = labels >= 0
        total = functional.binary_cross_entropy_with_logits(
            output,
            labels.to(output.dtype).clamp(min=0),
            known.to(output.dtype),
            reduction="sum",
        )
        count = graph.comm.allreduce(len(rows), where="targets")
        return total / output.shape[1] / max(count, 1)

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        return {
            "probabilities": torch.sigmoid(output).cpu().numpy(),
            "classes": (output > 0).to(torch.int8).cpu().numpy(),
        }

    def _score(self, graph: PartitionedGraph, output: Tensor, labels: Tensor) -> float:
        score = metrics.mean_roc_auc if self.metric == "auc" else metrics.micro_f1
        return score(graph.comm, output, labels)

    def _fits(self, graph: PartitionedGraph, labels: Tensor) -> bool:
        return labels.dim() == 2 and labels.shape[1] == self.num_outputs


def stored_task(values: dict[str, Any], path: Path) -> MultiClass | MultiLabel:
    """The task that a checkpoint stores.

    Raises:
        InputError: what is stored can't be.
    """
    outputs, several, metric = (
        values.get(name) for name in ("num_outputs", "multilabel", "metric")
    )
    good = several in (0, 1) and metric in ("accuracy", "auc", "f1")
    if not good or type(outputs) is not int or not 1 <= outputs <= _MOST_OUTPUTS:
        raise InputError("its task can't be", file=path, value=values)
    kind = MultiLabel if several else MultiClass
    return kind(outputs, chosen_metric(str(metric), bool(several), outputs))


def labelled(labels: Tensor, mask: Tensor) -> Tensor:
    """Local rows in `mask` with a known label: int64 `[m]`."""
    known = labels >= 0 if labels.dim() == 1 else (labels >= 0).any(dim=1)
    return torch.nonzero(mask & known).flatten()


def _known(graph: PartitionedGraph) -> Tensor:
    if graph.labels is None:
        raise InputError("the graph has no labels")
    return graph.labels


def find_task(graph: PartitionedGraph, metric: str) -> MultiClass | MultiLabel:
    """The task that the graph's labels pose; collective.

    Raises:
        InputError: no labels, no labelled training node, or a metric that doesn't fit.
    """
    comm, labels = graph.comm, graph.labels
    if labels is None or graph.train_mask is None:
        raise InputError("the graph has no labels or no split, so nothing can be learned from it")
    multilabel = labels.dim() == 2
    count = comm.allreduce(len(labelled(labels, graph.train_mask)), where="training nodes")
    if count == 0:
        raise InputError("no training node has a label; choose another --split")
    num_outputs = labels.shape[1] if multilabel else graph.num_classes
    kind = MultiLabel if multilabel else MultiClass
    return kind(num_outputs, chosen_metric(metric, multilabel, num_outputs))


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
