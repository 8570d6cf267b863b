"""An order of nodes in which neighbours lie near each other."""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import numpy as np

from hpcgnn.native import address
from hpcgnn.partition.layout.library import library
from hpcgnn.partition.routing import Array, Int64, group_by, pointers, sort_columns


@dataclass(frozen=True)
class Adjacency:
    """The neighbours of each node, ascending and without duplicates.

    Attributes:
        begin: int64 `[n + 1]`.
        neighbour: int32 `[m]`.
    """

    begin: Int64
    neighbour: Array

    @classmethod
    def of(cls, num_nodes: int, rows: Array, columns: Array) -> Adjacency:
        """Return the adjacency of edges in any order, which may be repeated."""
        begin, order = group_by(rows, num_nodes)
        neighbour, _ = sort_columns(begin, columns[order].astype(np.int32, copy=False))
        new = np.ones(len(neighbour), bool)
        new[1:] = neighbour[1:] != neighbour[:-1]
        new[begin[:-1][begin[:-1] < begin[1:]]] = True
        return cls(pointers(new)[begin], neighbour[new])

    @classmethod
    def both_ways(cls, num_nodes: int, rows: Array, columns: Array) -> Adjacency:
        """Return the adjacency of edges and their reverses."""
        return cls.of(num_nodes, np.concatenate([rows, columns]), np.concatenate([columns, rows]))


def reverse_cuthill_mckee(adjacency: Adjacency) -> Array:
    """Return an order of a symmetric graph's nodes, int32 `[n]`, in which edges are short.

    The order is breadth-first from the node of least degree, neighbours by their degree (Cuthill,
    McKee 1969), reversed (George 1971). It takes the time of sorting each node's neighbours once.
    """
    num_nodes = len(adjacency.begin) - 1
    row = np.repeat(np.arange(num_nodes, dtype=np.int32), np.diff(adjacency.begin))
    # A self-loop counts twice.
    degree = np.diff(adjacency.begin).astype(np.int32)
    degree[row[row == adjacency.neighbour]] += 1
    seeds = np.argsort(degree).astype(np.int32)
    order = np.empty(num_nodes, np.int32)
    library().hpcgnn_reverse_cuthill_mckee(
        c_int64(num_nodes),
        address(adjacency.begin),
        address(adjacency.neighbour),
        address(degree),
        address(seeds),
        address(order),
    )
    return order
