"""The order of the nodes inside a part: neighbours near each other, boundary nodes together."""

from __future__ import annotations

import numpy as np

from hpcgnn.partition.sorting import Array, Int64


def local_order(num_nodes: int, rows: Array, columns: Array, first_peer: Array) -> Int64:
    """Old local indices in their new order: int64 `[n]`.

    Args:
        rows, columns: the edges inside the part, as old local indices.
        first_peer: `[n]`, the lowest part that needs the node, -1 for an interior node.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    near = np.arange(num_nodes)
    if len(rows):
        ones = np.ones(len(rows), bool)
        adjacency = csr_array((ones, (rows, columns)), shape=(num_nodes, num_nodes))
        near = reverse_cuthill_mckee(adjacency, symmetric_mode=False).astype(np.int64)
    return near[np.argsort(first_peer[near], kind="stable")]
