"""Optimizer, learning rate, the arithmetic of products, perturbed inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
import torch._dynamo  # torch.optim imports it at its first use; better with all other imports
from torch import Tensor
from torch.optim import Optimizer

from hpcgnn.errors import InputError
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.build import Model
from hpcgnn.models.demands import leave_out
from hpcgnn.nn.embedding import initial_rows
from hpcgnn.train.config import Config


def configure(graph: PartitionedGraph, config: Config) -> PartitionedGraph:
    """The graph as the configuration has it: what to ignore, streaming, savings, random numbers."""
    streaming = config.streaming
    execution = Execution(
        graph.ring,
        mode=streaming.mode,
        seed=config.training.seed,
        fewest_rows=streaming.fewest_rows,
        narrow_first=streaming.narrow_first,
        cache_first=streaming.cache_first,
    )
    return replace(leave_out(graph, config.model), execution=execution)


def build_optimizer(config: Config, parameters: list[torch.nn.Parameter]) -> Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    settings = config.optimiser
    return kinds[settings.kind](parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def learning_rate(config: Config, epoch: int) -> float:
    """The learning rate of an epoch (from 1); without state, so that a resumed run agrees."""
    optimiser, epochs = config.optimiser, config.training.epochs
    if optimiser.schedule == "cosine":
        return optimiser.lr * (1 + math.cos(math.pi * (epoch - 1) / max(epochs, 1))) / 2
    if optimiser.schedule == "step":
        return optimiser.lr * optimiser.gamma ** ((epoch - 1) // optimiser.step_size)
    return optimiser.lr


CHOICES = ("fp32", "tf32", "bf16")


def prepare(precision: str) -> None:
    """Set torch's switch for products of float32 matrices, which holds for the whole process."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context to run a model's forward pass in; backward needs none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Attack:
    """Gradient ascent on a perturbation of the first layer's input, `steps` times an epoch.

    The perturbation starts uniform in ±size, by seed, epoch and node id; after each pass it moves
    by `size` along the sign of its gradient. Weight gradients of all passes are averaged.

    Raises:
        InputError: the input is sparse.
    """

    def __init__(self, model: Model, graph: PartitionedGraph, config: Config) -> None:
        self.steps, self.size = config.training.adversarial_steps, config.training.adversarial_size
        x_NF = model.inputs(graph)
        if not isinstance(x_NF, Tensor):
            raise InputError("--adversarial-steps needs dense features")
        self.model, self.graph = model, graph
        width = x_NF.shape[1]
        unit_NF = initial_rows(graph.node_ids, width, config.training.seed + 7919 * graph.epoch)
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
