"""An order of nodes in which nodes with the same neighbours lie together."""

from __future__ import annotations

from ctypes import c_int32, c_int64

import numpy as np

from hpcgnn.native import address
from hpcgnn.partition.layout.library import library
from hpcgnn.partition.layout.nearness import Adjacency
from hpcgnn.partition.routing import Array, Int64

_LIMIT = 4096  # most nodes of a cluster: 2 MiB of rows of 128 float32
_ROUNDS = 8


def order_by_cluster(adjacency: Adjacency, visit: Array, limit: int = _LIMIT) -> Int64:
    """Return the nodes by cluster, `[n]`; clusters and their nodes follow the order of `visit`.

    Clusters of at most `limit` nodes are found by label propagation (Raghavan, Albert, Kumara 2007;
    with limited sizes as Ugander and Backstrom 2013): the same in every run, and with any library.

    Args:
        visit: `[n]`, every node once.
    """
    num_nodes = len(adjacency.begin) - 1
    visit = np.ascontiguousarray(visit, np.int32)
    order = np.empty(num_nodes, np.int32)
    library().hpcgnn_order_by_cluster(
        c_int64(num_nodes),
        address(adjacency.begin),
        address(adjacency.neighbour),
        address(visit),
        c_int32(limit),
        c_int32(_ROUNDS),
        address(order),
    )
    return order.astype(np.int64)
