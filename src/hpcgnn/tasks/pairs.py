"""Decoders of pairs of nodes, and pairs with numbers that identify them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.places import FindPlaces, look_up
from hpcgnn.nn.layer import check_width
from hpcgnn.nn.linear import linear
from hpcgnn.sar.pairs import NodePairs


class DotProduct(torch.nn.Module):
    """`sum(x_src * x_dst)`: one score per pair, without parameters."""

    def forward(self, x_src: Tensor, x_dst: Tensor) -> Tensor:
        return (x_src * x_dst).sum(dim=1, keepdim=True)


def name_of(decoder: torch.nn.Module | None) -> str:
    """Return the decoder's name in checkpoints: `dot`, `mlp`, or `own`."""
    return {DotProduct: "dot", PairMLP: "mlp"}.get(type(decoder), "own")


class PairMLP(torch.nn.Module):
    """A network with one hidden layer that decodes a pair of nodes.

    Args:
        width: the width of a node's row.
        outputs: the number of outputs per pair.
        product: read `x_src * x_dst`, which is symmetric; else both rows, concatenated.
        seed: the seed of the initial weights, the same on all ranks.
    """

    def __init__(self, width: int, outputs: int, *, product: bool = False, seed: int = 0) -> None:
        super().__init__()
        check_width(self, "width", width, least=1)
        check_width(self, "outputs", outputs, least=1)
        self.product = product
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.inner = torch.nn.Linear(width if product else 2 * width, width)
            self.outer = torch.nn.Linear(width, outputs)

    def forward(self, x_src: Tensor, x_dst: Tensor) -> Tensor:
        joined = x_src * x_dst if self.product else torch.cat([x_src, x_dst], dim=1)
        hidden = torch.relu(linear(joined, self.inner.weight, self.inner.bias))
        return linear(hidden, self.outer.weight, self.outer.bias)


@dataclass(frozen=True)
class PairRows:
    """This rank's pairs, and arrays with a row for each of them."""

    pairs: NodePairs
    rows: dict[str, np.ndarray]


def numbered(graph: PartitionedGraph, source: np.ndarray, target: np.ndarray) -> NodePairs:
    """Number pairs whose targets are local nodes by target's id, then source's id; collective.

    The numbers of all ranks' pairs are 0 .. count - 1. Parallel pairs are numbered in the order
    given.
    """
    comm, places = graph.comm, graph.derived(FindPlaces())
    ids = graph.node_ids.cpu().numpy()
    source_id, row = places.look_up(source, ids), target - places.first
    order = np.lexsort((source_id, ids[row]))
    # The number of pairs that end at lower ids, counted on the rank that knows the slab of ids.
    holder = np.searchsorted(places.slab_P1, ids, side="right") - 1
    by_holder = np.argsort(holder, kind="stable")
    cuts = np.searchsorted(holder[by_holder], np.arange(1, comm.size))
    counts = np.bincount(row, minlength=len(ids))
    asked = comm.alltoallv(np.split(ids[by_holder], cuts), where="number pairs")
    told = comm.alltoallv(np.split(counts[by_holder], cuts), where="number pairs")
    low, high = places.slab_P1[comm.rank : comm.rank + 2]
    count_of_id = np.zeros(high - low, np.int64)
    for theirs, numbers in zip(asked, told, strict=True):
        count_of_id[theirs - low] = numbers
    before = sum(comm.allgather(int(count_of_id.sum()), where="number pairs")[: comm.rank])
    first_of_id = before + np.cumsum(count_of_id) - count_of_id
    first = look_up(comm, places.slab_P1, ids, first_of_id)
    number = np.empty(len(order), np.int64)
    sorted_rows = row[order]
    starts = np.flatnonzero(np.diff(sorted_rows, prepend=-1))
    within = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    number[order] = first[sorted_rows] + within
    return NodePairs(source, target, number)


def ids_of_pairs(
    graph: PartitionedGraph, pairs: NodePairs, ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the user's ids of both nodes of each pair, from `ids` of local nodes; collective."""
    places = graph.derived(FindPlaces())
    return {
        "source_ids": places.look_up(pairs.source, ids),
        "target_ids": places.look_up(pairs.target, ids),
    }
