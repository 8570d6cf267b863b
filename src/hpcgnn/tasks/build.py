"""Construction of tasks from settings and a graph, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.arguments import check_graph
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks.classes import CLASS_METRICS, LABEL_METRICS, MultiClass, MultiLabel
from hpcgnn.tasks.edges import EdgeTask
from hpcgnn.tasks.links import LINK_METRICS, LinkPrediction
from hpcgnn.tasks.pairs import PairMLP
from hpcgnn.tasks.settings import (
    BALANCED,
    LABELS,
    NONE,
    TaskSettings,
    check_stored,
    nothing_to_learn,
    weights,
)
from hpcgnn.tasks.task import Labelled, checked
from hpcgnn.tasks.values import VALUE_METRICS, Regression

_MOST_OUTPUTS = 1 << 24
_METRICS = {
    "classes": (CLASS_METRICS, "classes"),
    "labels": (LABEL_METRICS, "several labels"),
    "values": (VALUE_METRICS, "numbers"),
    "links": (LINK_METRICS, "links"),
}

BuiltInTask = Labelled | EdgeTask | LinkPrediction


def find_task(
    graph: PartitionedGraph,
    metric: str = "auto",
    settings: TaskSettings | None = None,
    seed: int = 0,
) -> BuiltInTask:
    """Return the task that the settings ask for, or that the graph's labels imply; collective.

    Args:
        seed: the seed of a decoder's initial weights, and of random draws.

    Raises:
        InputError: there is nothing to learn from, or the settings don't fit it.
    """
    check_graph(graph, "find_task")
    settings = settings or TaskSettings()
    if settings.on_pairs:
        settings.check_read(settings.kind)
    labels, split = graph.edge_labels, graph.edge_split
    check_stored(
        settings,
        edge_labels=labels is not None,
        edge_split=split is not None,
        arrays=graph.nodes,
    )
    if settings.kind == "links" and split is not None:
        return _links(graph, split, metric, settings, seed)
    if settings.on_pairs and split is not None and labels is not None:
        return _edges(graph, labels, split, metric, settings, seed)
    found = graph.labels if settings.target == LABELS else graph.nodes.get(settings.target)
    if found is None or graph.train_mask is None:
        raise nothing_to_learn("labels" if found is None else "split")
    task = _labelled(graph, metric, settings, found, settings.kind)
    settings.check_read(task.kind)
    rows = task.targets(graph, "train")
    Labelled.check_targets(task, graph, rows)
    task = _weighted(graph, task, settings, found[rows])
    task.check_targets(graph, rows)
    return task


def check_task(
    settings: TaskSettings, metric: str, labels: bool, multilabel: bool, num_outputs: int
) -> None:
    """Check, from a graph's header only, whether the task can be learned.

    Args:
        labels: whether the nodes have labels and a split.
        multilabel, num_outputs: whether a node has several labels, and the number of labels or
            classes; 0 if labels are numbers.

    Raises:
        InputError: the graph lacks what the task needs.
    """
    kind = settings.kind
    if kind == "auto" and settings.target == LABELS and labels:
        kind = "labels" if multilabel else "classes" if num_outputs else "values"
    if kind != "auto":
        settings.check_read(kind)
        checked(metric, *_METRICS[kind.removeprefix("edge-")])
    if settings.on_pairs or settings.target != LABELS:
        return
    if not labels:
        raise nothing_to_learn("labels or no split")
    if kind in ("classes", "labels") and multilabel != (kind == "labels"):
        have = "several labels" if multilabel else "one label"
        raise InputError(f"--task {kind} doesn't fit what is to be learned: nodes have {have} each")
    of_classes, of_ones = settings.class_weights, settings.positive_weights
    if kind == "classes" and num_outputs:
        metric = checked(metric, CLASS_METRICS, "classes")
        given = None if of_classes in (NONE, BALANCED) else weights(of_classes, "--class-weights")
        MultiClass(num_outputs, metric, class_weights=given)
    if kind == "labels" and num_outputs:
        metric = checked(metric, LABEL_METRICS, "several labels")
        given = None if of_ones in (NONE, BALANCED) else weights(of_ones, "--positive-weights")
        MultiLabel(num_outputs, metric, positive_weights=given)


def _links(
    graph: PartitionedGraph, split: Tensor, metric: str, settings: TaskSettings, seed: int
) -> LinkPrediction:
    width, module = settings.pair_width, None
    if settings.decoder == "mlp":
        module = PairMLP(width, 1, product=True, seed=seed)
    task = LinkPrediction(
        width,
        module,
        metric=checked(metric, LINK_METRICS, "links"),
        negatives=settings.negatives,
        ranked_against=settings.ranked_against,
        hits_at=settings.hits_at,
        seed=seed,
    )
    count = int((split == 1).sum())
    if graph.comm.allreduce(count, where="training pairs") == 0:
        raise InputError("no edge is of the training split; convert with another --link-split")
    return task


def _edges(
    graph: PartitionedGraph,
    labels: Tensor,
    split: Tensor,
    metric: str,
    settings: TaskSettings,
    seed: int,
) -> EdgeTask:
    answer = _labelled(graph, metric, settings, labels, settings.kind.removeprefix("edge-"))
    chosen = (split == 1) & answer.known(labels)
    if graph.comm.allreduce(int(chosen.sum()), where="training edges") == 0:
        raise InputError("no training edge has a label; choose another split of the edges")
    answer = _weighted(graph, answer, settings, labels[chosen])
    answer.check_answers(graph.comm, labels[chosen])
    return EdgeTask(answer, settings.pair_width, seed=seed)


def _labelled(
    graph: PartitionedGraph, metric: str, settings: TaskSettings, found: Tensor, kind: str
) -> Labelled:
    if kind == "auto":
        kind = "labels" if found.dim() == 2 else "classes"
        kind = "values" if found.is_floating_point() else kind
    count, target = count_of(graph, found), settings.target
    if kind == "classes" and count > _MOST_OUTPUTS:
        raise InputError(f"there must be at most {_MOST_OUTPUTS:,} classes", value=count)
    if kind != "values" and count < 1:
        raise InputError("no node or edge of the graph has a label")
    task: Labelled
    if kind == "values":
        count = found.shape[1] if found.dim() == 2 else 1
        task = Regression(
            count,
            checked(metric, VALUE_METRICS, "numbers"),
            target,
            settings.loss,
            settings.huber_delta,
            None if settings.node_weights == NONE else settings.node_weights,
        )
    elif kind == "labels":
        task = MultiLabel(count, checked(metric, LABEL_METRICS, "several labels"), target)
    else:
        task = MultiClass(
            count,
            checked(metric, CLASS_METRICS, "classes"),
            target,
            label_smoothing=settings.label_smoothing,
        )
    if not task.fits(found):
        shape = f"{found.dtype} {list(found.shape)}".removeprefix("torch.")
        raise InputError(f"--task {settings.kind} doesn't fit what is to be learned", value=shape)
    return task


def count_of(graph: PartitionedGraph, answers: Tensor) -> int:
    """Return the number of classes, of labels, or of numbers per row; collective."""
    if answers.dim() == 2:
        return int(answers.shape[1])
    if answers.is_floating_point():
        return 1
    if answers is graph.labels:
        return graph.num_classes
    most = int(answers.max()) + 1 if len(answers) else 0
    return graph.comm.allreduce(max(most, 0), "max", where="classes")


def _weighted(
    graph: PartitionedGraph, task: Labelled, settings: TaskSettings, answers: Tensor
) -> Labelled:
    """Return the task with the weights that the settings ask for; collective.

    Args:
        answers: the answers of the training rows.
    """
    of_classes, of_ones = settings.class_weights, settings.positive_weights
    if isinstance(task, MultiClass) and of_classes != NONE:
        task.class_weights = _numbers(
            of_classes, "--class-weights", lambda: _class_shares(graph, task, answers)
        )
    if isinstance(task, MultiLabel) and of_ones != NONE:
        task.positive_weights = _numbers(
            of_ones, "--positive-weights", lambda: _zeros_per_one(graph, answers)
        )
    task.check()
    return task


def _numbers(text: str, option: str, balanced: Any) -> tuple[float, ...]:
    return tuple(balanced()) if text == BALANCED else weights(text, option)


def _class_shares(graph: PartitionedGraph, task: MultiClass, answers: Tensor) -> list[float]:
    """Return scikit-learn's `balanced` weights: rows / (present classes * rows of the class)."""
    own_Y = torch.bincount(answers.long(), minlength=task.num_outputs).cpu().numpy()
    count_Y = graph.comm.allreduce(own_Y, where="class weights")
    there = count_Y > 0
    shares = count_Y.sum() / (there.sum() * np.maximum(count_Y, 1))
    return np.where(there, shares, 0.0).tolist()


def _zeros_per_one(graph: PartitionedGraph, answers: Tensor) -> list[float]:
    """Return for each label its zeros divided by its ones, or 1 if it has no ones."""
    counts = torch.stack([(answers == value).sum(dim=0) for value in (0, 1)]).cpu().numpy()
    zeros_T, ones_T = graph.comm.allreduce(counts, where="positive weights")
    return np.where(ones_T > 0, zeros_T / np.maximum(ones_T, 1), 1.0).tolist()


def stored_task(
    values: dict[str, Any], path: Path, lengths: Collection[int] | None = None
) -> BuiltInTask:
    """Return the task that a checkpoint stores; a decoder's weights are still to be read.

    Args:
        lengths: the lengths of the checkpoint's arrays; a decoder of other sizes is refused. None
            allows any size.

    Raises:
        InputError: the stored values describe no task.
    """
    known: dict[str, Any] = dict(values)
    if "kind" not in known:  # a checkpoint of an earlier release
        former = known.get("multilabel")
        known["kind"] = "classes" if former == 0 else "labels" if former == 1 else ""
    if known.get("decoder") == "own":
        raise InputError(
            "only the program that trained it knows its decoder: predict there, by "
            "hpcgnn.predict(..., task=task)",
            file=path,
        )
    try:
        built = known.get("decoder") == "mlp" or str(known["kind"]).startswith("edge-")
        sizes = {known.get("width", 1), known.get("num_outputs", 1)} if built else set()
        if lengths is not None and not sizes <= {1, *lengths}:
            raise ValueError
        return _stored(**known)
    except (TypeError, ValueError, InputError):
        raise InputError("its task can't be", file=path, value=values) from None


def _stored(
    kind: str,
    metric: str,
    num_outputs: int = 1,
    target: str = LABELS,
    width: int = 1,
    decoder: str = "dot",
    loss: str = "mse",
    ranked_against: int = 100,
    seed: int = 0,
    **others: Any,
) -> BuiltInTask:
    for count in (num_outputs, width, ranked_against):
        if type(count) is not int or not 1 <= count <= _MOST_OUTPUTS:
            raise ValueError
    if not all(isinstance(text, str) for text in (kind, metric, target, decoder, loss)):
        raise ValueError
    if decoder not in ("dot", "mlp") or (kind.startswith("edge-") and decoder != "mlp"):
        raise ValueError
    if kind == "links":
        name, _, k = metric.partition("@")
        hits_at = int(k or 10)
        if not 1 <= hits_at <= 1 << 30:
            raise ValueError
        module = PairMLP(width, 1, product=True) if decoder == "mlp" else None
        checked(name, LINK_METRICS, "links")
        ranking = {"ranked_against": ranked_against, "hits_at": hits_at, "seed": seed}
        links = LinkPrediction(width, module, metric=name, **ranking)
        if links.metric != metric:
            raise ValueError
        return links
    answer: MultiClass | MultiLabel | Regression
    what = kind.removeprefix("edge-")
    if what == "classes":
        answer = MultiClass(num_outputs, checked(metric, CLASS_METRICS, what), target)
    elif what == "labels":
        answer = MultiLabel(num_outputs, checked(metric, LABEL_METRICS, what), target)
    elif what == "values":
        answer = Regression(num_outputs, checked(metric, VALUE_METRICS, what), target, loss)
    else:
        raise ValueError
    return EdgeTask(answer, width) if kind.startswith("edge-") else answer
