"""What a task is: which rows are targets, the loss and the metrics, all over the ranks."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.sar.pairs import NodePairs
from hpcgnn.tasks.pair_rows import PairRows

SPLITS = ("train", "valid", "test")


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

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        raise NotImplementedError


OWN = "own"  # the kind that `stored` says of a task of the user's
_METHODS = ("targets", "loss", "metrics")
_ASKED = ("metric", "larger_is_better")
_OPTIONAL = ("num_outputs", "module", "stored", "prepare", "pairs", "predictions", "is_scored")


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
