"""Regression of one or several numbers per row: squared, absolute or Huber loss; MAE, RMSE, R2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks import metrics
from hpcgnn.tasks.task import Labelled, checked

VALUE_METRICS = ("mae", "rmse", "r2")
LOSSES = ("mse", "mae", "huber")
_MOST_DELTA = 1e12


@dataclass
class Regression(Labelled):
    """The task of predicting `num_outputs` numbers per row (float `[n]` or `[n, W]`, NaN unknown).

    The loss is the mean over all known numbers, each with its row's weight; metrics are
    unweighted.

    Attributes:
        loss_kind: `mse`, `mae` or `huber` (quadratic below `huber_delta`, linear above).
        node_weights: name of an array of the nodes with their weights in the loss; None: all are 1.

    Raises:
        InputError: the loss is unknown.
    """

    metric: str = "mae"
    loss_kind: str = "mse"
    huber_delta: float = 1.0
    node_weights: str | None = None

    kind = "values"

    def check(self) -> None:
        self.metric = checked(self.metric, VALUE_METRICS, "numbers")
        delta = self.huber_delta
        if isinstance(delta, bool) or not isinstance(delta, Real) or not 0 < delta <= _MOST_DELTA:
            raise InputError(f"huber_delta must be above 0, at most {_MOST_DELTA:.0e}", value=delta)
        if self.loss_kind not in LOSSES:
            raise InputError(f"--loss must be one of {', '.join(LOSSES)}", value=self.loss_kind)

    @property
    def larger_is_better(self) -> bool:  # type: ignore[override]
        return self.metric == "r2"

    def fits(self, answers: Tensor) -> bool:
        return (answers.shape[1] if answers.dim() == 2 else 1) == self.num_outputs

    def known(self, answers: Tensor) -> Tensor:
        return ~torch.isnan(self._values(answers)).all(dim=1)

    def weights_of(self, graph: PartitionedGraph, rows: Tensor) -> Tensor | None:
        if self.node_weights is None:
            return None
        found = graph.nodes.get(self.node_weights)
        if found is None or found.dim() != 1:
            raise InputError(
                f"--node-weights must name an array of one number per node: {self.node_weights}"
            )
        return found[rows]

    def check_targets(self, graph: PartitionedGraph, rows: Tensor) -> None:
        """Refuse weights of these nodes that are none or all 0, or are not in the graph."""
        super().check_targets(graph, rows)
        weights = self.weights_of(graph, rows)
        if weights is None:
            return
        wrong = int((~(torch.isfinite(weights) & (weights >= 0))).sum())
        counts = np.array([wrong, int((weights > 0).sum())], np.int64)
        wrong, above = graph.comm.allreduce(counts, where="node weights").tolist()
        if wrong or not above:
            raise InputError(
                f"--node-weights {self.node_weights}: must be finite and at least 0 for all "
                "training nodes, and above 0 for one of them"
            )

    def share(
        self, comm: Communicator, output: Tensor, answers: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        true = self._values(answers).to(output.dtype)
        known = ~torch.isnan(true)
        off = torch.where(known, output - torch.where(known, true, 0), 0)
        zero = torch.zeros_like(off)
        if self.loss_kind == "mse":
            terms = off * off
        elif self.loss_kind == "mae":
            terms = off.abs()
        else:
            terms = functional.huber_loss(off, zero, reduction="none", delta=self.huber_delta)
        shares = known.to(output.dtype)
        if weights is not None:
            shares = shares * _scaled(comm, weights).to(output.dtype)[:, None]
        whole = comm.allreduce(float(shares.double().sum()), where="targets")
        return (terms * shares).sum() / (whole if whole > 0 else 1)

    def predictions(self, output: Tensor) -> dict[str, np.ndarray]:
        values: np.ndarray = output.cpu().numpy()
        return {"values": values[:, 0] if self.num_outputs == 1 else values}

    def scores(self, comm: Communicator, output: Tensor, answers: Tensor) -> dict[str, float]:
        true = self._values(answers)
        return {
            "mae": metrics.mean_absolute_error(comm, output, true),
            "rmse": metrics.root_mean_squared_error(comm, output, true),
            "r2": metrics.r2(comm, output, true),
        }

    def decided(self, comm: Communicator, answers: Tensor) -> bool:
        known = (~torch.isnan(self._values(answers))).sum(dim=0).cpu().numpy()
        count_T = comm.allreduce(known, where="nodes to be scored")
        if self.metric == "r2" and (count_T == 1).any():
            return False
        return bool(count_T.any())

    def stored(self) -> dict[str, Any]:
        return super().stored() | {"loss": self.loss_kind}

    def _values(self, answers: Tensor) -> Tensor:
        """Return `[n, W]`, NaN unknown; classes and labels may be learned as numbers too."""
        wide = answers[:, None] if answers.dim() == 1 else answers
        if wide.is_floating_point() or self.target != "labels":
            return wide.double() if wide.dtype == torch.float64 else wide.float()
        return torch.where(wide < 0, torch.nan, wide.float())


def _scaled(comm: Communicator, weights: Tensor) -> Tensor:
    """By a power of two, so that the largest of all ranks is from 0.5 to 1: the mean is the same.

    Volumes in cubic metres may be smaller than float32 holds after a product, or larger.
    """
    own = float(weights.max()) if len(weights) else 0.0
    largest = comm.allreduce(own, "max", where="node weights")
    return weights.double() * 2.0 ** -math.frexp(largest)[1]
