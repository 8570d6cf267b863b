"""Tasks that learn classes, labels or numbers of edges from the rows of their two nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hpcgnn.comm.unfinished import in_step
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import EdgeEnds
from hpcgnn.sar.pairs import NodePairs, pair_values
from hpcgnn.tasks.pairs import PairMLP, PairRows, name_of, numbered
from hpcgnn.tasks.task import SPLITS, Labelled, TaskDefaults, check_count


@dataclass
class EdgeTask(TaskDefaults):
    """The task of learning `graph.edge_labels` for the edges chosen by `graph.edge_split`.

    Attributes:
        answer: what is learned about an edge: `MultiClass`, `MultiLabel` or `Regression`.
        width: the width of the model's output row of each node.
        module: the decoder of a pair of rows; None: a `PairMLP`.
        seed: the seed of its initial weights.
    """

    answer: Labelled
    width: int
    module: torch.nn.Module | None = None
    seed: int = 0
    num_outputs: int = field(init=False)
    has_valid_loss = False  # `loss` always uses the training pairs

    def __post_init__(self) -> None:
        check_count(self, "width", self.width)
        if not isinstance(self.answer, Labelled):
            raise InputError(
                "EdgeTask: answer must be a MultiClass, MultiLabel or Regression",
                value=type(self.answer).__name__,
            )
        if self.module is None:
            self.module = PairMLP(self.width, self.answer.num_outputs, seed=self.seed)
        self.metric = self.answer.metric
        self.larger_is_better = self.answer.larger_is_better
        self.num_outputs = self.width

    def targets(self, graph: PartitionedGraph, split: str) -> Tensor:
        """Return all local nodes, as any may be an end of an edge, here or on another rank."""
        return torch.arange(graph.num_local_nodes, device=graph.node_ids.device)

    def check_targets(self, graph: PartitionedGraph, rows: Tensor) -> None:
        """Refuse answers of training's edges that the loss can't be of."""
        if self._has_labels(graph):
            self.answer.check_answers(graph.comm, self._supervised(graph, "train")[1])

    @in_step
    def loss(self, graph: PartitionedGraph, output: Tensor, rows: Tensor) -> Tensor:
        edges, answers = self._supervised(graph, "train")
        return self.answer.share(graph.comm, self._values(graph, output, edges), answers)

    @in_step
    @torch.no_grad()
    def metrics(
        self, graph: PartitionedGraph, output: Tensor, rows: Tensor, split: str
    ) -> dict[str, float]:
        if not self._has_labels(graph):
            return {self.metric: math.nan}
        edges, answers = self._supervised(graph, split)
        return self.answer.scores(graph.comm, self._values(graph, output, edges), answers)

    def is_scored(self, graph: PartitionedGraph, split: str) -> bool:
        if not self._has_labels(graph):
            return False
        return self.answer.decided(graph.comm, self._supervised(graph, split)[1])

    @in_step
    @torch.no_grad()
    def pairs(
        self, graph: PartitionedGraph, output: Tensor, chosen: NodePairs | None = None
    ) -> PairRows:
        """Return the predictions for every edge of the graph, or for the chosen pairs."""
        # Compare with None: a rank's chosen pairs may be empty, and an empty list is false.
        edges = numbered(graph, *graph.derived(EdgeEnds())) if chosen is None else chosen
        return PairRows(edges, self.answer.predictions(self._values(graph, output, edges)))

    def stored(self) -> dict[str, Any]:
        return self.answer.stored() | {
            "kind": f"edge-{self.answer.kind}",
            "width": self.width,
            "decoder": name_of(self.module),
        }

    def _has_labels(self, graph: PartitionedGraph) -> bool:
        return (
            graph.edge_labels is not None
            and graph.edge_split is not None
            and self.answer.fits(graph.edge_labels)
        )

    def _supervised(self, graph: PartitionedGraph, split: str) -> tuple[NodePairs, Tensor]:
        """Return the edges of a split that have a known answer, and these answers."""
        labels, splits = graph.edge_labels, graph.edge_split
        if labels is None or splits is None or not self.answer.fits(labels):
            raise InputError(
                "the graph has no matching edge labels, or no split of the edges: add them with "
                "convert --edge-label COLUMN or --edge-labels, and --link-split"
            )
        chosen = (splits == SPLITS.index(split) + 1) & self.answer.known(labels)
        rows = torch.nonzero(chosen).flatten()
        source, target = graph.derived(EdgeEnds())
        at = rows.cpu().numpy()
        return NodePairs(source[at], target[at], at), labels[rows]

    def _values(self, graph: PartitionedGraph, output: Tensor, edges: NodePairs) -> Tensor:
        if self.module is None:
            raise InputError("a task on edges needs a module that decodes two nodes")
        return pair_values(graph, output, edges, self.module)
