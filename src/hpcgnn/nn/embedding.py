"""Learned rows per node, kept by the node's owner: memory falls as 1/P, nothing is summed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpcgnn.graph import PartitionedGraph

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Embedding(torch.nn.Module):
    """A learned `[n, D]` for the local nodes.

    The initial row of a node depends on the seed and its id alone: uniform in ±sqrt(6 / D).
    """

    def __init__(self, graph: PartitionedGraph, width: int, seed: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(initial_rows(graph.node_ids, width, seed))
        self.weight.sharded = True  # type: ignore[attr-defined]

    def forward(self, graph: PartitionedGraph) -> Tensor:
        return self.weight


def initial_rows(ids_N: Tensor, width: int, seed: int) -> Tensor:
    """Uniform in ±sqrt(6 / width) from a counter-based generator: float32 `[n, width]`."""
    word: np.ndarray = (
        ids_N.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(width)
        + np.arange(width, dtype=np.uint64)
        + np.uint64((seed + 1) * _GOLDEN & _MASK)
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    unit = ((word ^ (word >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / (1 << 24)
    return torch.from_numpy((2 * unit - 1) * np.float32(np.sqrt(6 / width))).to(ids_N.device)
