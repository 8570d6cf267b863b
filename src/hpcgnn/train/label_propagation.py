"""Predictions from the labels of training nodes: label propagation, and Correct & Smooth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.smoothing import correct_and_smooth, label_propagation
from hpcgnn.tasks.build import find_task
from hpcgnn.tasks.classes import MultiClass
from hpcgnn.train.prediction import Prediction, node_ids, scored


def predict_from_labels(graph: PartitionedGraph) -> Prediction:
    """Return label propagation from the training nodes, without a model; collective.

    Raises:
        InputError: the graph has no training labels, or several labels per node.
        NumericalError: no prediction is finite.
    """
    task = find_task(graph, "auto")
    if not isinstance(task, MultiClass):
        raise InputError("--label-propagation needs one class per node")
    _say_directed(graph)
    soft_NY = propagated(graph, task.num_outputs)
    return scored(graph, task, node_ids(graph) | class_rows(soft_NY), soft_NY)


def propagated(graph: PartitionedGraph, num_classes: int) -> Tensor:
    """Return class probabilities `[N, Y]` from the labels of training nodes; collective.

    Raises:
        InputError: the graph has no split.
    """
    return _shares(label_propagation(graph, _train_mask(graph), num_classes))


def smoothed(graph: PartitionedGraph, scores_NY: Tensor) -> Tensor:
    """Return probabilities after Correct & Smooth of a model's output `[N, Y]`; collective.

    Raises:
        InputError: the graph has no split.
    """
    _say_directed(graph)
    return _shares(correct_and_smooth(graph, torch.softmax(scores_NY, dim=-1), _train_mask(graph)))


def class_rows(soft_NY: Tensor) -> dict[str, np.ndarray]:
    """Return the columns of a prediction of classes."""
    return {
        "probabilities": soft_NY.cpu().numpy(),
        "classes": soft_NY.argmax(dim=-1).cpu().numpy(),
    }


def check_known_labels(graph: PartitionedGraph, num_classes: int | None, reader: str) -> None:
    """Check that training nodes have labels, of classes that the model knows; collective.

    Raises:
        InputError: there are no labels, or one is of another class.
    """
    most = count = -1
    labels = graph.labels
    classes = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
    if labels is not None and classes and graph.train_mask is not None:
        known = labels[graph.train_mask & (labels >= 0)]
        count, most = len(known), int(known.max()) if len(known) else -1
    count, most = graph.ring.comm.allreduce(np.array([count, most]), "max", where="known labels")
    if count <= 0:
        raise InputError(f"{reader} reads the labels of training nodes, but this graph has none")
    if num_classes is not None and most >= num_classes:
        raise InputError(
            f"{reader} reads the labels of training nodes, which must be classes of the model: "
            f"0 .. {num_classes - 1}",
            value=int(most),
        )


def _say_directed(graph: PartitionedGraph) -> None:
    if graph.ring.comm.rank == 0 and not graph.symmetric:
        print(
            "note: the graph is directed: labels spread only along its edges; convert --symmetrise "
            "makes it undirected",
            flush=True,
        )


def _train_mask(graph: PartitionedGraph) -> Tensor:
    if graph.train_mask is None:
        raise InputError("the graph has no split and therefore no training labels")
    return graph.train_mask


def _shares(scores_NY: Tensor) -> Tensor:
    """Return rows divided by their sums; equal shares if the sum is at most 0, nan if it is nan."""
    sums_N1 = scores_NY.sum(dim=1, keepdim=True)
    unknown_N1 = sums_N1 <= 0
    shares_NY = scores_NY / torch.where(unknown_N1, 1.0, sums_N1)
    return torch.where(unknown_N1, 1 / scores_NY.shape[1], shares_NY)
