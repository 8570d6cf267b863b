"""What a task is: targets, loss, metrics, over the ranks; with a known answer per row."""

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

SPLITS = ("train", "valid", "test")
OWN = "own"  # the kind that `stored` says of a task of the user's
_METHODS = ("targets", "loss", "metrics")
_ASKED = ("metric", "larger_is_better")
_OPTIONAL = ("num_outputs", "module", "stored", "prepare", "pairs", "predictions", "is_scored")
LABELS = "labels"  # the target that is no named array


@runtime_checkable
class Task(Protocol):
    """What is learned. `TaskDefaults` has what is optional; `as_task` adds it to any object.

    Attributes:
        metric: names the entry of `metrics` that chooses the best epoch.
        larger_is_better: whether larger values of it are better.
        num_outputs: columns that the model's output must have; None where any will do.
        module: parameters of the task's own, such as a decoder of pairs of nodes; None without.
    """

    metric: str

    @property
    def larger_is_better(self) -> bool: ...

    @property
    def num_outputs(self) -> int | None: ...

    @property
    def module(self) -> torch.nn.Module | None: ...

    def prepare(self, graph: PartitionedGraph) -> PartitionedGraph:
        """The graph as the model may see it; the other methods are given this one; collective."""
        ...

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        """Local rows of the model's output that loss and metrics of `split` read: int64 `[m]`."""
        ...

    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        """This rank's share: the sum over the ranks is the loss; collective.

        Args:
            output: row i is the model's row of local node `rows[i]`.
            rows: the targets of `train`, rising, or a part of them.
        """
        ...

    def metrics(
        self, graph: PartitionedGraph, output: Tensor, rows: Tensor, split: str
    ) -> dict[str, float]:
        """Metrics by name, the same on all ranks; nan where undefined; collective."""
        ...

    def stored(self) -> dict[str, Any]:
        """What prediction needs to know of it, for checkpoints: numbers and texts."""
        ...

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        """What is written of the model's output, a row per local node in each array."""
        ...

    def pairs(
        self, graph: PartitionedGraph, output: Tensor, chosen: NodePairs | None = None
    ) -> PairRows | None:
        """What is written of edges or pairs of nodes, or of these; None: of nodes; collective."""
        ...

    def is_scored(self, graph: PartitionedGraph, split: str) -> bool:
        """Whether the metric of `split` is defined, which targets alone decide; collective."""
        ...

    def check_targets(self, graph: PartitionedGraph, rows: Tensor) -> None:
        """Refuse targets of training that the loss can't be of, before the first epoch; collective.

        Raises:
            InputError: it can't.
        """
        ...


class TaskDefaults:
    """What a task need not say itself."""

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
    """An object with the three methods and the two attributes, and what it has beside them."""

    def __init__(self, own: Any) -> None:
        for name in (*_METHODS, *_ASKED, *_OPTIONAL):
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))


def as_task(own: Any) -> Task:
    """`own` as a `Task`: what is optional and not there is as in `TaskDefaults`.

    Raises:
        InputError: it lacks one of `targets`, `loss`, `metrics`, `metric` or `larger_is_better`.
    """
    if isinstance(own, TaskDefaults) and isinstance(own, Task):
        return own
    for name in (*_METHODS, *_ASKED):
        there = getattr(own, name, None)
        if there is None or (name in _METHODS and not callable(there)):
            kind = "method" if name in _METHODS else "attribute"
            raise InputError(
                f"the task {type(own).__name__} has no {kind} {name}: a task has the methods "
                f"{', '.join(_METHODS)} and the attributes {' and '.join(_ASKED)}"
            )
    if not isinstance(own.metric, str) or not isinstance(own.larger_is_better, bool):
        raise InputError(
            f"the task {type(own).__name__} must have a text as metric, and True or False as "
            "larger_is_better"
        )
    return cast(Task, _Adapted(own))


def split_mask(graph: PartitionedGraph, split: str) -> Tensor | None:
    """Bool `[n]` of the local nodes of `train`, `valid` or `test`; None without a split."""
    masks = dict(zip(SPLITS, (graph.train_mask, graph.valid_mask, graph.test_mask), strict=True))
    return masks[split]


@dataclass
class Labelled(TaskDefaults):
    """A task on nodes, whose answers are the labels or a named array of the nodes.

    Attributes:
        num_outputs: columns of the model's output.
        metric: which of `metrics` chooses the best epoch.
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
        """Whether answers of a graph, maybe not the one trained on, are of this kind."""
        raise NotImplementedError

    def known(self, answers: Tensor) -> Tensor:
        """Bool `[n]`: rows of which something is known."""
        raise NotImplementedError

    def share(
        self, comm: Communicator, output: Tensor, answers: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """This rank's share of the loss; the ranks add up to the mean over all known rows."""
        raise NotImplementedError

    def scores(self, comm: Communicator, output: Tensor, answers: Tensor) -> dict[str, float]:
        """Every metric over the rows of all ranks."""
        raise NotImplementedError

    def decided(self, comm: Communicator, answers: Tensor) -> bool:
        """Whether the answers of all ranks define the metric."""
        raise NotImplementedError

    # A task on nodes

    def answers(self, graph: PartitionedGraph) -> Tensor | None:
        """What is to be found at each node; None where the graph has nothing that fits."""
        found = graph.labels if self.target == LABELS else graph.nodes.get(self.target)
        return found if found is not None and self.fits(found) else None

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        """Nodes of `split` of which something is known."""
        answers, mask = self.answers(graph), split_mask(graph, split)
        if answers is None or mask is None:
            return torch.zeros(0, dtype=torch.int64, device=graph.node_ids.device)
        return torch.nonzero(mask & self.known(answers)).flatten()

    @in_step
    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        answers = self.answers(graph)
        if answers is None:
            raise InputError(f"the graph has no {self.target} that fit the task")
        return self.share(graph.comm, output, answers[rows], self.weights_of(graph, rows))

    def weights_of(self, graph: PartitionedGraph, rows: Tensor) -> Tensor | None:
        """Weights of these nodes in the loss; None where all weigh the same."""
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
    """The metric, where it is one of this kind of task; `auto`: the first.

    Raises:
        InputError: it isn't.
    """
    if metric == "auto":
        return known[0]
    if metric not in known:
        raise InputError(f"--metric {metric} doesn't fit {kind}: choose {', '.join(known)}")
    return metric
