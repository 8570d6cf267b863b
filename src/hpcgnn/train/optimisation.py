"""Optimizers, parameter groups, weight averages, gradient clipping, precision, perturbed inputs."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, say
from hpcgnn.graph.execution import Execution
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.models.build import Model
from hpcgnn.models.demands import leave_out
from hpcgnn.models.segments import layers_together
from hpcgnn.nn.linear import initial_rows, is_sharded
from hpcgnn.train.config import Config
from hpcgnn.train.learned import Learned, some
from hpcgnn.train.optimizers import PlainAdam, PlainAdamW, PlainSGD, load_compiler
from hpcgnn.train.settings import patterns_of

_COUPLE_ROWS = ("Adafactor", "Muon")  # torch's whose step uses all rows of a parameter together


def parameter_groups(text: str, named: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Return an optimizer's groups for a text such as `*.bias:weight_decay=0;inputs.*:lr=0.001`.

    Each parameter is in the group of the first pattern that its name matches (as file names do);
    the others are in a last group.

    Raises:
        InputError: the text can't be parsed, or a pattern matches no parameter.
    """
    read = patterns_of(text)
    patterns = [pattern for pattern, _ in read]
    groups: list[dict[str, Any]] = [{"params": [], **values} for _, values in read]
    rest: dict[str, Any] = {"params": []}
    for name, parameter in named:
        fits = (g for p, g in zip(patterns, groups, strict=True) if fnmatch.fnmatchcase(name, p))
        next(fits, rest)["params"].append(parameter)
    for pattern, group in zip(patterns, groups, strict=True):
        if not group["params"]:
            raise InputError("--param-groups: no parameter has a name that matches", value=pattern)
    return [*groups, rest] if rest["params"] else groups


class Average:
    """A moving average of the parameters, not of buffers, updated after each epoch.

    It is `average <- decay * average + (1 - decay) * weight`.

    Attributes:
        values: averages by parameter name; empty before the first epoch.
    """

    def __init__(self, learned: Learned, decay: float) -> None:
        self.learned, self.decay = learned, decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self.learned.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter.detach(), 1 - self.decay)
            else:
                self.values[name] = parameter.detach().clone()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their averages within the context, and their own values after it."""
        if not self.values:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.learned.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)


def configure(graph: PartitionedGraph, config: Config) -> PartitionedGraph:
    """Return the graph with the configuration's left-out data, streaming, savings and seed."""
    streaming = config.streaming
    execution = Execution(
        graph.ring,
        mode=streaming.mode,
        seed=config.training.seed,
        fewest_rows=streaming.fewest_rows,
        narrow_first=streaming.narrow_first,
        cache_first=streaming.cache_first,
        together=layers_together(config.model) if streaming.recompute else 0,
    )
    return replace(leave_out(graph, config.model), execution=execution)


def build_optimizer(config: Config, parameters: list[Any]) -> Optimizer:
    """Return the optimizer of the settings, for parameters or groups of them.

    Adam updates parameters on a GPU by one kernel for all of them.

    Raises:
        InputError: the settings are of a run whose optimizer was made by a Python program.
    """
    kinds: dict[str, type[Optimizer]] = {"adam": PlainAdam, "adamw": PlainAdamW, "sgd": PlainSGD}
    settings = config.optimiser
    if settings.kind not in kinds:
        raise InputError(
            "--optimizer own is for optimizers made by a Python program; choose another here"
        )
    kind: Any = kinds[settings.kind]
    made: Optimizer = kind(
        parameters, lr=settings.lr, weight_decay=settings.weight_decay, **_fused(kind, parameters)
    )
    return made


def _fused(kind: type[Optimizer], parameters: list[Any]) -> dict[str, bool]:
    """Return the option with which one kernel updates all parameters, if these are on a GPU."""
    groups = [part["params"] if isinstance(part, dict) else [part] for part in parameters]
    taken = all(
        p.is_cuda and p.is_floating_point() and p.is_contiguous() for group in groups for p in group
    )
    return {"fused": True} if taken and kind in (PlainAdam, PlainAdamW) else {}


def made_optimizer(
    given: Optimizer | Callable[[Any], Optimizer] | str | None,
    learned: Learned,
    config: Config,
    comm: Communicator,
) -> Optimizer:
    """Return the given optimizer, or make it; it may only hold parameters of the model or the task.

    Raises:
        InputError: it holds others, is not a torch optimizer, or is one that can't be used.
    """
    if given is None or isinstance(given, str):
        text, named = config.optimiser.param_groups, list(learned.named_parameters())
        parts: list[Any] = parameter_groups(text, named) if text else learned.parameters()
        return build_optimizer(config, parts)
    load_compiler()
    optimizer: object = given
    if callable(given) and not isinstance(given, Optimizer):
        optimizer = given(learned.parameters())
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            "optimizer must be one of torch.optim, or a function that makes one from the "
            "parameters",
            value=type(optimizer).__name__,
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("LBFGS evaluates the loss several times per step, which isn't supported")
    given_parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if type(optimizer).__name__ in _COUPLE_ROWS and any(map(is_sharded, given_parameters)):
        raise _coupled(optimizer, "its update")
    held = {id(p) for p in given_parameters}
    names = {id(p): name for name, p in learned.named_parameters()}
    frozen = {id(p) for p in learned.parameters() if not p.requires_grad}
    if held - names.keys():
        raise InputError(
            "the optimizer has parameters that belong neither to the model nor to the task's "
            "module: make it after the model is complete"
        )
    left = [name for number, name in names.items() if number not in held | frozen]
    if left and comm.rank == 0:
        say(f"note: the optimizer doesn't have {some(left)}: not trained")
    return optimizer


def check_rows(optimizer: Optimizer) -> None:
    """Check after a step that the optimizer's state of sharded parameters is kept by row.

    Raises:
        InputError: it keeps state for all rows of a rank together, so that its steps would depend
            on how rows are distributed over ranks.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            together = isinstance(value, Tensor) and value.dim() > 0
            if is_sharded(parameter) and together and len(value) != len(parameter):
                raise _coupled(optimizer, f"its state {key}")


def _coupled(optimizer: Optimizer, what: str) -> InputError:
    return InputError(
        f"{type(optimizer).__name__} combines the learned rows of a rank in {what}, so the result "
        "would depend on the number of ranks: choose another optimizer"
    )


def schedule_factor(config: Config, epoch: int) -> float:
    """Return the factor of --lr that the schedule gives for an epoch (from 1), before warm-up."""
    optimiser, epochs = config.optimiser, config.training.epochs
    if optimiser.schedule == "cosine":
        return (1 + math.cos(math.pi * (epoch - 1) / max(epochs, 1))) / 2
    if optimiser.schedule == "step":
        return optimiser.gamma ** ((epoch - 1) // optimiser.step_size)
    return 1.0


def learning_rate(config: Config, epoch: int) -> float:
    """Return the learning rate of an epoch; it has no state, so that a resumed run agrees."""
    warmup = config.optimiser.warmup
    rate = config.optimiser.lr * schedule_factor(config, epoch)
    return rate if epoch > warmup else rate * (epoch / (warmup + 1))


@torch.no_grad()
def clip_gradients(parameters: list[torch.nn.Parameter], limit: float, comm: Communicator) -> float:
    """Scale all gradients so that their norm over all ranks is at most `limit`; collective.

    Replicated parameters, whose gradients are already summed, count once; of sharded parameters
    the rows of all ranks count. As `torch.nn.utils.clip_grad_norm_`.

    Returns:
        The norm before scaling.
    """
    squares, own = 0.0, 0.0
    learned = [(p, p.grad) for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for _, grad in learned]
    # A single tensor, so that the host waits for a GPU only once.
    found = torch.stack(norms).tolist() if norms else []
    for (parameter, _), one in zip(learned, found, strict=True):
        if is_sharded(parameter):
            own += one**2
        else:
            squares += one**2
    if any(is_sharded(parameter) for parameter in parameters):
        squares += comm.allreduce(own, where="norm of the gradients")
    norm = math.sqrt(squares)
    scale = limit / (norm + 1e-6)
    if scale < 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    return norm


def prepare(precision: str) -> None:
    """Set torch's precision of float32 matrix products, which holds for the whole process."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a model's forward pass runs; backward needs none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Attack:
    """Gradient ascent on a perturbation of the first layer's input, `steps` times per epoch.

    The perturbation starts uniform in ±size, drawn by seed, epoch and node id; after each pass it
    moves by `size` along the sign of its gradient. The weight gradients of all passes are averaged.

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
        """Run `one_pass(x)`, a forward and backward pass, `steps` times; return the mean loss."""
        total = 0.0
        for _ in range(self.steps):
            total += one_pass(self.model.inputs(self.graph) + self.shift_NF)
            grad_NF = self.shift_NF.grad
            if grad_NF is not None:
                with torch.no_grad():
                    self.shift_NF += self.size * grad_NF.sign()
                self.shift_NF.grad = None
        return total / self.steps
