"""The forward and backward passes of an epoch, over all ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.tasks.task import Task
from hpcgnn.train.arguments import check_counts
from hpcgnn.train.calls import ModelCall
from hpcgnn.train.diagnosis import first_layer
from hpcgnn.train.optimisation import Attack
from hpcgnn.train.scores import check_output, picked
from hpcgnn.train.telemetry import Stopwatch


@dataclass(frozen=True)
class Passes:
    """The passes of one epoch, which accumulate gradients and return the loss over all ranks.

    Attributes:
        rows: this rank's targets of training.
        first: whether it is the first epoch of this start, which checks the model's output.
        fail: raises an error on all ranks, given what is not finite and where it began.
    """

    graph: PartitionedGraph
    task: Task
    call: ModelCall
    rows: Tensor
    watch: Stopwatch
    first: bool
    fail: Callable[[str, str], NoReturn]

    def one(self, x_NF: Tensor | None = None, steps: int = 1) -> float:
        """Run a pass of the task's loss, with the gradients of 1 / steps of it; collective."""
        rows = self.call.targets(self.rows)
        with self.watch.phase("forward"), self.graph.comm.at("forward"):
            output = self.call.training_output(x_NF)
            place = self.call.place(rows)
            if self.first:
                check_output(output, place, self.task)
            share = self.task.loss(self.graph, picked(output, place), rows)
            if isinstance(share, Tensor) and not share.requires_grad:
                # A rank with a constant share must still take part in the others' backward passes.
                share = share + output[:0].sum()
        del output
        return self._backward(share, x_NF, steps)

    def adversarial(self, attack: Attack) -> float:
        """Run the passes of adversarial steps; collective."""
        return attack.run(lambda x_NF: self.one(x_NF, attack.steps))

    def several(self, shares: Iterator[Any]) -> float:
        """Run a pass of each loss, of which `shares` yields this rank's part; collective."""
        comm, total, end = self.graph.comm, 0.0, object()
        comm.background()  # made by all ranks in step
        for count in itertools.count():
            with self.watch.phase("forward"), comm.at(f"forward of loss {count + 1}"):
                share = next(shares, end)
                check_counts(comm, count, more=share is not end)
            if share is end:
                break
            total += self._backward(share)
        return total

    def _backward(self, share: Any, x_NF: Tensor | None = None, steps: int = 1) -> float:
        comm = self.graph.comm
        if not isinstance(share, Tensor) or share.numel() != 1:
            raise InputError(
                "the loss must be a tensor with one number: this rank's share",
                value=tuple(share.shape) if isinstance(share, Tensor) else type(share).__name__,
            )
        with self.watch.phase("forward"), comm.at("forward"):
            total: float = comm.allreduce(float(share.detach()), where="loss")
        if not math.isfinite(total):
            place = first_layer(self.call.model, comm, lambda: self.call.raw(x_NF))
            self.fail(f"the loss is {total}", place)
        if not share.requires_grad:
            raise InputError(
                "the loss does not depend on the model's parameters: was the model's output "
                "detached, or computed under torch.no_grad?"
            )
        with self.watch.phase("backward"), comm.at("backward"):
            (share / steps).backward()
        return total
