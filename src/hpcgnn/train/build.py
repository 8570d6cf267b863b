"""From a configuration and a graph to a model and its optimizer."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer

from hpcgnn.errors import InputError
from hpcgnn.graph import PartitionedGraph, SparseRows
from hpcgnn.nn import GCNConv, SAGEConv, Stack
from hpcgnn.train.config import Config


def build_model(config: Config, graph: PartitionedGraph, num_outputs: int) -> torch.nn.Module:
    """The model of `config` for this graph, with the same weights on every rank (by seed).

    Raises:
        InputError: the graph lacks what the model needs.
    """
    torch.manual_seed(config.seed)
    return Stack(
        _width(graph),
        config.hidden,
        num_outputs,
        config.layers,
        _CONVOLUTIONS[config.model],
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        norm=config.norm,
        activation=config.activation,
        residual=config.residual,
        head=config.head,
        jumping=config.jumping,
    )


_CONVOLUTIONS = {
    "gcn": lambda a, b, layer: GCNConv(a, b),
    "sage": lambda a, b, layer: SAGEConv(a, b),
}


def _width(graph: PartitionedGraph) -> int:
    if graph.features is None:
        raise InputError("the graph has no node features; give --embedding WIDTH to learn some")
    if isinstance(graph.features, SparseRows):
        return graph.features.shape[1]
    return graph.features.shape[1]


def build_optimizer(config: Config, parameters: list[torch.nn.Parameter]) -> Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)


def learning_rate(config: Config, epoch: int) -> float:
    """The learning rate of an epoch (from 1); without state, so that a resumed run agrees."""
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * (epoch - 1) / max(config.epochs, 1))) / 2
    if config.schedule == "step":
        return config.lr * config.gamma ** ((epoch - 1) // config.step_size)
    return config.lr
