"""Adversarial perturbation of the input features (FLAG, Kong et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph import PartitionedGraph
from hpcgnn.nn.embedding import initial_rows
from hpcgnn.train.build import Model
from hpcgnn.train.config import Config


class Attack:
    """Gradient ascent on a perturbation of the first layer's input, `steps` times an epoch.

    The perturbation starts uniform in ±size, by seed, epoch and node id; after each pass it moves
    by `size` along the sign of its gradient. Weight gradients of all passes are averaged.

    Raises:
        InputError: the input is sparse.
    """

    def __init__(self, model: Model, graph: PartitionedGraph, config: Config) -> None:
        self.steps, self.size = config.adversarial_steps, config.adversarial_size
        x_NF = model.inputs(graph)
        if not isinstance(x_NF, Tensor):
            raise InputError("--adversarial-steps needs dense features")
        self.model, self.graph = model, graph
        width = x_NF.shape[1]
        unit_NF = initial_rows(graph.node_ids, width, config.seed + 7919 * graph.epoch)
        bound = (6 / width) ** 0.5
        self.shift_NF = (unit_NF * (self.size / bound)).requires_grad_()

    def run(self, one_pass: Callable[[Tensor], float]) -> float:
        """`one_pass(x)` runs forward and backward; returns the mean loss."""
        total = 0.0
        for _ in range(self.steps):
            total += one_pass(self.model.inputs(self.graph) + self.shift_NF)
            grad_NF = self.shift_NF.grad
            if grad_NF is not None:
                with torch.no_grad():
                    self.shift_NF += self.size * grad_NF.sign()
                self.shift_NF.grad = None
        return total / self.steps
