"""What tasks with a known answer per row have in common, be the rows nodes or edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks.task import TaskDefaults, split_mask

LABELS = "labels"  # the target that is no named array


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
        self.check()

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

    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        answers = self.answers(graph)
        if answers is None:
            raise InputError(f"the graph has no {self.target} that fit the task")
        return self.share(graph.comm, output, answers[rows], self.weights_of(graph, rows))

    def weights_of(self, graph: PartitionedGraph, rows: Tensor) -> Tensor | None:
        """Weights of these nodes in the loss; None where all weigh the same."""
        return None

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
