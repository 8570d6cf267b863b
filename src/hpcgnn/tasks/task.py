"""The protocol of tasks (targets, loss, metrics), and tasks on nodes with an answer per row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.comm.unfinished import in_step
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.pairs import NodePairs
from hpcgnn.tasks.pairs import PairRows
from hpcgnn.tasks.settings import LABELS

SPLITS = ("train", "valid", "test")
OWN = "own"  # the kind that `stored` gives for a user's own task
_METHODS = ("targets", "loss", "metrics")
_ASKED = ("metric", "larger_is_better")
_OPTIONAL = ("num_outputs", "module", "stored", "prepare", "pairs", "predictions", "is_scored")


@runtime_checkable
class Task(Protocol):
    """The protocol of what is learned.

    `TaskDefaults` implements the optional members; `as_task` adds them to any object.

    Attributes:
        metric: the name of the entry of `metrics` that chooses the best epoch.
        larger_is_better: whether larger values of it are better.
        num_outputs: the required number of columns of the model's output; None allows any.
        module: a module with the task's own parameters, such as a decoder of pairs, or None.
    """

    metric: str

    @property
    def larger_is_better(self) -> bool: ...

    @property
    def num_outputs(self) -> int | None: ...

    @property
    def module(self) -> torch.nn.Module | None: ...

    def prepare(self, graph: PartitionedGraph) -> PartitionedGraph:
        """Return the graph that the model may see, which the other methods get; collective."""
        ...

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        """Return local rows of the output that loss and metrics of `split` read: int64 `[m]`."""
        ...

    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        """Return this rank's share of the loss, which is the sum over the ranks; collective.

        Args:
            output: row i is the model's output for local node `rows[i]`.
            rows: the targets of `train`, ascending, or a part of them.
        """
        ...

    def metrics(
        self, graph: PartitionedGraph, output: Tensor, rows: Tensor, split: str
    ) -> dict[str, float]:
        """Return the metrics by name, the same on all ranks; nan if undefined; collective."""
        ...

    def stored(self) -> dict[str, Any]:
        """Return what prediction needs of the task, as numbers and texts, for checkpoints."""
        ...

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        """Return the arrays to write for the model's output, with a row per local node each."""
        ...

    def pairs(
        self, graph: PartitionedGraph, output: Tensor, chosen: NodePairs | None = None
    ) -> PairRows | None:
        """Return what to write for the task's pairs, or `chosen` ones; None: nodes; collective."""
        ...

    def is_scored(self, graph: PartitionedGraph, split: str) -> bool:
        """Return whether the targets of `split` define its metric; collective."""
        ...

    def check_targets(self, graph: PartitionedGraph, rows: Tensor) -> None:
        """Refuse targets of training that the loss can't be of, before the first epoch; collective.

        Raises:
            InputError: it can't.
        """
        ...


class TaskDefaults:
    """Defaults of the optional members of a task."""

    num_outputs: int | None = None
    module: torch.nn.Module | None = None
    metric: str
    larger_is_better: bool

    def stored(self) -> dict[str, Any]:
        return {
            "kind": OWN,
            "metric": self.metric,
            "larger_is_better": int(self.larger_is_better),
        }

    def prepare(self, graph: PartitionedGraph) -> PartitionedGraph:
        return graph

    def pairs(
        self, graph: PartitionedGraph, output: Tensor, chosen: NodePairs | None = None
    ) -> PairRows | None:
        return None

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        return {"output": output.float().cpu().numpy()}

    def is_scored(self, graph: PartitionedGraph, split: str) -> bool:
        count = len(self.targets(graph, split))
        return graph.comm.allreduce(count, where="nodes to be scored") > 0

    def check_targets(self, graph: PartitionedGraph, rows: Tensor) -> None:
        """Nothing is refused; see `Task`."""

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        raise NotImplementedError


class _Adapted(TaskDefaults):
    """A task made from an object with the required members and any optional ones."""

    def __init__(self, own: Any) -> None:
        for name in (*_METHODS, *_ASKED, *_OPTIONAL):
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))


def as_task(own: Any) -> Task:
    """Return `own` as a `Task`, with missing optional members taken from `TaskDefaults`.

    Raises:
        InputError: `own` lacks `targets`, `loss`, `metrics`, `metric` or `larger_is_better`.
    """
    if isinstance(own, type):
        raise InputError(
            f"the task must be an object, such as {own.__name__}(...)",
            value=f"the class {own.__name__}",
        )
    if isinstance(own, TaskDefaults) and isinstance(own, Task):
        return own
    for name in (*_METHODS, *_ASKED):
        there = getattr(own, name, None)
        if there is None or (name in _METHODS and not callable(there)):
            kind = "method" if name in _METHODS else "attribute"
            raise InputError(
                f"the task {type(own).__name__} lacks the {kind} {name}: a task has the methods "
                f"{', '.join(_METHODS)} and the attributes {' and '.join(_ASKED)}"
            )
    if not isinstance(own.metric, str) or not isinstance(own.larger_is_better, bool):
        raise InputError(
            f"the task {type(own).__name__} must have a string as metric, and True or False as "
            "larger_is_better"
        )
    return cast(Task, _Adapted(own))


def split_mask(graph: PartitionedGraph, split: str) -> Tensor | None:
    """Return bool `[n]`, local nodes of `train`, `valid` or `test`; None without a split."""
    masks = dict(zip(SPLITS, (graph.train_mask, graph.valid_mask, graph.test_mask), strict=True))
    return masks[split]


@dataclass
class Labelled(TaskDefaults):
    """A task on nodes whose answers are the labels or a named array of the nodes.

    Attributes:
        num_outputs: the number of columns of the model's output.
        metric: the name of the entry of `metrics` that chooses the best epoch.
        target: `labels`, or the name of an array of the nodes.
    """

    num_outputs: int = field()
    metric: str = field()
    target: str = LABELS

    kind = ""

    def __post_init__(self) -> None:
        check_count(self, "num_outputs", self.num_outputs)
        if not isinstance(self.target, str):
            raise InputError("target must be labels, or the name of an array", value=self.target)
        self.check()

    def check_targets(self, graph: PartitionedGraph, rows: Tensor) -> None:
        """Refuse a split of training without answers."""
        if graph.comm.allreduce(len(rows), where="training nodes") == 0:
            raise InputError("no training node has a label; choose another --split")
        answers = self.answers(graph)
        if answers is not None:
            self.check_answers(graph.comm, answers[rows])

    def check_answers(self, comm: Communicator, answers: Tensor) -> None:
        """Refuse answers of training that the loss can't be of; collective."""

    # What a kind of answer says of itself

    def check(self) -> None:
        """Refuse attributes that don't fit together."""

    def fits(self, answers: Tensor) -> bool:
        """Return whether answers, possibly of another graph than trained on, are of this kind."""
        raise NotImplementedError

    def known(self, answers: Tensor) -> Tensor:
        """Return bool `[n]`: whether any answer of the row is known."""
        raise NotImplementedError

    def share(
        self, comm: Communicator, output: Tensor, answers: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return this rank's share; the ranks' shares sum to the mean loss over all known rows."""
        raise NotImplementedError

    def scores(self, comm: Communicator, output: Tensor, answers: Tensor) -> dict[str, float]:
        """Return every metric over the rows of all ranks."""
        raise NotImplementedError

    def decided(self, comm: Communicator, answers: Tensor) -> bool:
        """Return whether the answers of all ranks define the metric."""
        raise NotImplementedError

    # Methods of a task on nodes

    def answers(self, graph: PartitionedGraph) -> Tensor | None:
        """Return the answers of all local nodes, or None if the graph has none that fit."""
        found = graph.labels if self.target == LABELS else graph.nodes.get(self.target)
        return found if found is not None and self.fits(found) else None

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        """Return the nodes of `split` with a known answer."""
        answers, mask = self.answers(graph), split_mask(graph, split)
        if answers is None or mask is None:
            return torch.zeros(0, dtype=torch.int64, device=graph.node_ids.device)
        return torch.nonzero(mask & self.known(answers)).flatten()

    @in_step
    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        answers = self.answers(graph)
        if answers is None:
            raise InputError(f"the graph has no {self.target} that fits the task")
        return self.share(graph.comm, output, answers[rows], self.weights_of(graph, rows))

    def weights_of(self, graph: PartitionedGraph, rows: Tensor) -> Tensor | None:
        """Return the weights of these nodes in the loss; None if all are equal."""
        return None

    @in_step
    def metrics(
        self, graph: PartitionedGraph, output: Tensor, rows: Tensor, split: str
    ) -> dict[str, float]:
        answers = self.answers(graph)
        if answers is None:
            return {self.metric: math.nan}
        return self.scores(graph.comm, output, answers[rows])

    def is_scored(self, graph: PartitionedGraph, split: str) -> bool:
        answers = self.answers(graph)
        return answers is not None and self.decided(graph.comm, answers[self.targets(graph, split)])

    def stored(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "num_outputs": self.num_outputs,
            "metric": self.metric,
            "target": self.target,
        }


def check_count(task: object, name: str, value: object, least: int = 1) -> None:
    """Raise InputError unless what a task was given is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(
            f"{type(task).__name__}: {name} must be an integer of at least {least}", value=value
        )


def checked(metric: str, known: tuple[str, ...], kind: str) -> str:
    """Return the metric if it is one of this kind of task; `auto` is the first.

    Raises:
        InputError: the metric is not one of them.
    """
    if metric == "auto":
        return known[0]
    if metric not in known:
        raise InputError(f"--metric {metric} doesn't fit {kind}: choose {', '.join(known)}")
    return metric
