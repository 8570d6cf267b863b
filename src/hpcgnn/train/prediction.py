"""A prediction: its rows, and the scores over all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hpcgnn.errors import InputError, NumericalError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks.edges import EdgeTask
from hpcgnn.tasks.settings import LABELS, shown
from hpcgnn.tasks.task import SPLITS, Task
from hpcgnn.train.scores import checked_metrics
from hpcgnn.train.user_names import FindNodeIds


@dataclass(frozen=True, repr=False)
class Prediction:
    """This rank's rows, and the metric over the train, valid and test nodes of all ranks.

    `rows` holds `original_ids` `[n]`, UTF-8 bytes if nodes have names; `probabilities` `[n, Y]` and
    `classes` `[n]` (or 0/1 `[n, T]` for several labels), or `values` `[n]` or `[n, T]`; and,
    if asked for, `embeddings` `[n, hidden]`. For edges and pairs of nodes it holds `source_ids` and
    `target_ids` instead of `original_ids`. `not_finite` is the number of nodes (or pairs) over all
    ranks with a value in their rows that is not finite, `first_not_finite` the row of the first in
    the output.

    Attributes:
        numbers: int64, position of each of this rank's rows in the output.
        count: number of rows of all ranks.
        what: `nodes` or `pairs`.
        named_by: `nodes` or `edges`, whose label names are the classes' names; empty: neither.
    """

    rows: dict[str, np.ndarray]
    metric: str
    scores: dict[str, float]
    numbers: np.ndarray
    count: int
    what: str = "nodes"
    named_by: str = "nodes"
    not_finite: int = 0
    first_not_finite: int = -1

    def __repr__(self) -> str:
        """Return one line on the rows of this rank and the scores of all."""
        scores = [f"{split} {shown(self.metric, score)}" for split, score in self.scores.items()]
        arrays = [f"{name} {list(array.shape)}" for name, array in self.rows.items()]
        return (
            f"Prediction({len(self.numbers):,} of {self.count:,} {self.what}; "
            f"{self.metric}: {', '.join(scores) or 'not known'}; rows: {', '.join(arrays)})"
        )


def node_ids(graph: PartitionedGraph) -> dict[str, np.ndarray]:
    """Return the user's ids of the nodes, the first column of their predictions; collective."""
    return {"original_ids": graph.derived(FindNodeIds())}


def scored(
    graph: PartitionedGraph,
    task: Task,
    rows: dict[str, np.ndarray],
    scores_NY: Tensor,
    numbers: np.ndarray | None = None,
) -> Prediction:
    """Return the rows, with scores of all nodes' outputs; `numbers` is of pairs, None for nodes."""
    scores = {}
    for split in SPLITS:
        targets = task.targets(graph, split)
        metrics = task.metrics(graph, scores_NY[targets], targets, split)
        score = checked_metrics(metrics, task)[task.metric]
        if math.isfinite(score):
            scores[split] = score
    what = "nodes" if numbers is None else "pairs"
    numbers = graph.node_ids.cpu().numpy() if numbers is None else numbers
    total = graph.comm.allreduce(len(numbers), where="check the predictions")
    count, first = _not_finite(graph, rows, numbers)
    if not total:
        raise InputError("there are no pairs of nodes to predict")
    if count == total:
        raise NumericalError(
            f"no {what[:-1]} has a finite prediction: the model or its input is not finite"
        )
    named_by = "edges" if isinstance(task, EdgeTask) else ""
    if what == "nodes" and getattr(task, "target", None) == LABELS:
        named_by = what
    return Prediction(rows, task.metric, scores, numbers, total, what, named_by, count, first)


def _not_finite(
    graph: PartitionedGraph, rows: dict[str, np.ndarray], ids: np.ndarray
) -> tuple[int, int]:
    """Return the number of rows, over all ranks, that aren't finite, and the first; collective."""
    comm = graph.comm
    bad = np.zeros(len(ids), bool)
    for array in rows.values():
        if array.dtype.kind == "f":
            bad |= ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    count = comm.allreduce(int(bad.sum()), where="check the predictions")
    lowest = int(ids[bad].min()) if bad.any() else 1 << 62
    return count, comm.allreduce(lowest, "min", where="check the predictions")
