"""Layers called as in PyTorch Geometric, `layer(x, edge_index)`, with the graph as `edge_index`.

    from hpcgnn.nn.pyg import GATConv, SAGEConv     # in place of torch_geometric.nn

A model class needs no other change than this line: `Trainer` calls its `forward(x, edge_index)`
with the graph as `edge_index`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.linear import NodeFeatures


@functools.cache
def called_as_in_pyg(layer: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """Return the class with PyTorch Geometric's order of arguments; weights keep their names."""

    def forward(
        self: torch.nn.Module,
        x: NodeFeatures,
        edge_index: PartitionedGraph,
        edge_weight: Tensor | None = None,
        edge_attr: Tensor | None = None,
    ) -> Any:
        if not isinstance(edge_index, PartitionedGraph):
            raise InputError(
                f"{layer.__name__}: edge_index must be the graph, as Trainer gives it",
                value=type(edge_index).__name__,
            )
        if edge_weight is not None or edge_attr is not None:
            raise InputError(
                f"{layer.__name__}: edge weights and features are those of the graph: leave "
                "edge_weight and edge_attr out"
            )
        return layer.forward(self, edge_index, x)

    return type(layer.__name__, (layer,), {"forward": forward, "__doc__": layer.__doc__})


def __getattr__(name: str) -> Any:
    layer = getattr(nn, name, None)
    if name in __dir__():
        return called_as_in_pyg(layer)
    raise AttributeError(f"module 'hpcgnn.nn.pyg' has no layer {name!r}")


def __dir__() -> list[str]:
    return [name for name in nn.__all__ if name.endswith("Conv") or name == "APPNP"]
