"""An order of nodes in which those with the same neighbours lie together."""

from __future__ import annotations

from ctypes import c_int32, c_int64
from typing import Any

import numpy as np

from hpcgnn.partition.layout.library import library
from hpcgnn.partition.routing import Array, Int64

_LIMIT = 4096  # nodes of a cluster: 2 MiB of rows of 128 float32
_ROUNDS = 8


def order_by_cluster(adjacency: Any, visit: Array, limit: int = _LIMIT) -> Int64:
    """The nodes by cluster, `[n]`, clusters and their nodes in the order of `visit`.

    Clusters of at most `limit` nodes by label propagation (Raghavan, Albert, Kumara 2007; with
    limited sizes as Ugander and Backstrom 2013): the same in every run, and with any library.

    Args:
        adjacency: `[n, n]`, compressed by rows.
        visit: `[n]`, every node once.
    """
    num_nodes = adjacency.shape[0]
    begin = np.ascontiguousarray(adjacency.indptr, np.int64)
    neighbour = np.ascontiguousarray(adjacency.indices, np.int32)
    visit = np.ascontiguousarray(visit, np.int32)
    order = np.empty(num_nodes, np.int32)
    library().hpcgnn_order_by_cluster(
        c_int64(num_nodes),
        begin.ctypes,
        neighbour.ctypes,
        visit.ctypes,
        c_int32(limit),
        c_int32(_ROUNDS),
        order.ctypes,
    )
    return order.astype(np.int64)
