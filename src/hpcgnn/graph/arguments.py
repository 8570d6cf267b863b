"""Checks of the arguments that a Python program passes; each is refused in one line."""

from __future__ import annotations

import torch

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph


def check_graph(graph: object, who: str) -> None:
    """Raise InputError unless it is a rank's part of a graph."""
    if not isinstance(graph, PartitionedGraph):
        raise InputError(
            f"{who}: graph must be what hpcgnn.load_partition returns", value=type(graph).__name__
        )


def check_module(model: object, who: str) -> None:
    """Raise InputError unless it is a module, not its class."""
    if not isinstance(model, torch.nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise InputError(f"{who}: model must be a torch.nn.Module", value=kind)
