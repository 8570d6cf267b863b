"""Calling a model: a user's, or a built-in one whose training pass leaves nodes out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.kept import Kept
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.subgraph import message_flow
from hpcgnn.models.build import Model
from hpcgnn.models.inputs import LabelInput
from hpcgnn.models.stack import Flow
from hpcgnn.nn.linear import NodeFeatures
from hpcgnn.train.config import Config
from hpcgnn.train.optimisation import arithmetic

_NO_GRAPH = (
    "data",
    "batch",
    "input",
    "inputs",
    "x",
)  # a single argument of these names is not the graph
_HALVES = (torch.bfloat16, torch.float16)


class ModelCall:
    """Calls a module with the arguments that its `forward` takes.

    These are `forward(graph, x)` with the graph's features, `forward(graph)`, or PyTorch
    Geometric's `forward(x, edge_index)`, where the graph is passed as `edge_index`, for layers of
    `hpcgnn.nn.pyg`.

    Raises:
        InputError: `forward` takes other arguments, or the graph has no features.
    """

    def __init__(
        self, model: torch.nn.Module, graph: PartitionedGraph, precision: str, keep_in: str = "fp32"
    ) -> None:
        self.model, self.graph, self.precision = model, graph, precision
        self.keep_in = keep_in
        self.order = _order(model)
        if graph.features is None and self.order != "graph":
            raise InputError(
                f"{type(model).__name__}.forward reads node features, but the graph has none: let "
                "it take only the graph"
            )

    def raw(self, x_NF: NodeFeatures | None = None) -> Tensor:
        """Return the module's output for all local nodes; `x_NF` replaces the graph's features."""
        x_NF = self.graph.features if x_NF is None else x_NF
        given = {"graph": (self.graph,), "graph, x": (self.graph, x_NF), "x": (x_NF, self.graph)}
        output = self.model(*given[self.order])
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise InputError(
                f"{type(self.model).__name__}.forward must return a tensor with one row per node",
                value=type(output).__name__,
            )
        return output

    def random_numbers(self, epoch: int, seed: int) -> AbstractContextManager[Any]:
        """Return a context in which torch's random numbers depend on seed, epoch and rank alone."""
        device = self.graph.node_ids.device
        stack = ExitStack()
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        words = np.random.SeedSequence((seed, epoch, self.graph.comm.rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
        return stack

    def output(self) -> Tensor:
        """Return the output in the run's precision, as float32 rows if that is lower."""
        return self._precise(None)

    def training_output(self, x_NF: NodeFeatures | None = None) -> Tensor:
        """Return the output of a pass to be trained on; see `place` for its rows."""
        with self.kept():
            return self._precise(x_NF)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep tensors saved for backward in the settings' dtype within the context."""
        if self.keep_in == "fp32":
            yield
            return
        graph, execution = self.graph, self.graph.execution
        own = [*graph.typed_features.values(), *graph.nodes.values()]
        if isinstance(graph.features, Tensor):
            own.append(graph.features)
        blocks = [*graph.in_edges.blocks, *graph.out_edges.blocks]
        own += [block.features for block in blocks if block.features is not None]
        execution.kept = Kept([*self.model.parameters(), *self.model.buffers(), *own])
        try:
            with execution.kept:
                yield
        finally:
            execution.kept = None

    def targets(self, rows: Tensor) -> Tensor:
        """Return the training targets that are targets in this epoch."""
        return rows

    def place(self, rows: Tensor) -> Tensor:
        """Return the positions in `training_output` of the rows of these local nodes."""
        return rows

    def _precise(self, x_NF: NodeFeatures | None) -> Tensor:
        with arithmetic(self.precision, self.graph.node_ids.device):
            output = self.raw(x_NF)
        return output.float() if output.dtype in _HALVES else output


class BuiltInCall(ModelCall):
    """Calls a built-in model without nodes that reach no target, and hides targets' labels."""

    model: Model

    def __init__(
        self, model: Model, graph: PartitionedGraph, config: Config, train_rows: Tensor
    ) -> None:
        self.model, self.graph, self.precision = model, graph, config.device.precision
        self.keep_in = config.device.keep_in
        self.train_rows = train_rows
        self.flow = self._message_flow(config)

    def random_numbers(self, epoch: int, seed: int) -> AbstractContextManager[Any]:
        return nullcontext()  # built-in masks are drawn by node, epoch and seed

    def raw(self, x_NF: NodeFeatures | None = None) -> Tensor:
        output: Tensor = self.model(self.graph, x_NF)
        return output

    def training_output(self, x_NF: NodeFeatures | None = None) -> Tensor:
        with self.kept(), arithmetic(self.precision, self.graph.node_ids.device):
            output: Tensor = self.model(self.graph, x_NF, self.flow)
        return output.float()

    def targets(self, rows: Tensor) -> Tensor:
        inputs = self.model.inputs
        if not isinstance(inputs, LabelInput):
            return rows
        return inputs.hidden(self.graph, rows)

    def place(self, rows: Tensor) -> Tensor:
        return rows if self.flow is None else torch.searchsorted(self.train_rows, rows)

    def _message_flow(self, config: Config) -> Flow | None:
        """Return pruned layers for the training pass; None if a layer needs all nodes anyway."""
        whole = config.model.norm in ("batch", "graph") or config.model.jumping != "none"
        if not config.streaming.prune or whole:
            return None
        graph = self.graph
        target_N = torch.zeros(
            graph.num_local_nodes, dtype=torch.bool, device=graph.node_ids.device
        )
        target_N[self.train_rows] = True
        flow = message_flow(graph, target_N, self.model.hops())
        return flow if any(step is not None for step in flow) else None


def _order(model: torch.nn.Module) -> str:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    asked = inspect.signature(model.forward).parameters.values()
    positions = [parameter for parameter in asked if parameter.kind in kinds]
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in asked):
        return "graph, x"
    names = [parameter.name for parameter in positions]
    needed = [parameter for parameter in positions if parameter.default is inspect.Parameter.empty]
    if len(names) == 1 and names[0] not in _NO_GRAPH:
        return "graph"
    if len(names) >= 2 and len(needed) <= 2:
        by_edges = names[1] in ("edge_index", "adj_t", "graph")
        return "x" if by_edges or names[0] == "x" else "graph, x"
    if names == ["data"]:
        raise InputError(
            f"{type(model).__name__}.forward takes PyTorch Geometric's data, which ranks don't "
            "have: write forward(self, x, edge_index), with layers of hpcgnn.nn.pyg, or "
            "forward(self, graph)"
        )
    raise InputError(
        f"{type(model).__name__}.forward must take (graph, x) or (graph), or PyTorch Geometric's "
        "(x, edge_index)",
        value=", ".join(names),
    )
