"""Learned rows per node, kept by the node's owner: memory falls as 1/P, nothing is summed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcgnn.errors import InputError
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.nn.layer import check_width

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class ShardedParameter(torch.nn.Parameter):
    """A parameter of which each rank has its own rows, also after it was copied or pickled."""

    sharded = True

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuilt, (self.data, self.requires_grad)


def is_sharded(parameter: Tensor) -> bool:
    """Whether each rank owns its own rows of this parameter (learned node embeddings)."""
    return bool(getattr(parameter, "sharded", False))


def _rebuilt(data: Tensor, requires_grad: bool) -> ShardedParameter:
    return ShardedParameter(data, requires_grad)


class Embedding(torch.nn.Module):
    """A learned `[n, D]` for the local nodes.

    The initial row of a node depends on the seed and its id alone: uniform in ±sqrt(6 / D).
    """

    def __init__(self, graph: PartitionedGraph, width: int, seed: int) -> None:
        super().__init__()
        check_width(self, "width", width)
        self.weight = ShardedParameter(initial_rows(graph.node_ids, width, seed))

    def forward(self, graph: PartitionedGraph) -> Tensor:
        if not isinstance(graph, PartitionedGraph) or len(self.weight) != graph.num_local_nodes:
            raise InputError(
                f"Embedding: has rows for {len(self.weight)} nodes: call it with the part that it "
                "was made for"
            )
        return self.weight

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._keep_sharded()  # where it was assigned, not copied

    def _apply(self, *args: Any, **keywords: Any) -> Embedding:
        super()._apply(*args, **keywords)
        self._keep_sharded()  # where torch swaps parameters as they are moved
        return self

    def _keep_sharded(self) -> None:
        if not getattr(self.weight, "sharded", False):
            self.weight = ShardedParameter(self.weight.data, self.weight.requires_grad)
            self.weight.sharded = True  # where the data are of a tensor class of their own


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
