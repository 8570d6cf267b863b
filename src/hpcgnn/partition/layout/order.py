"""The order of nodes in a part, and whether a graph is its own reverse."""

from __future__ import annotations

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.layout.columns import Columns
from hpcgnn.partition.sorting import Array, Int64
from hpcgnn.storage.fingerprint import mix64


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


_CHUNK = 1 << 18


def _mix(values: Array) -> Array:
    mixed = values.astype(np.uint64)
    mix64(mixed)
    return mixed


def _attribute_hash(columns: Columns, low: int, high: int) -> Array:
    """One value per edge that tells its attributes apart: uint64."""
    total = np.zeros(high - low, np.uint64)
    for name in sorted(columns):
        values = columns[name][low:high].reshape(high - low, -1)
        if values.dtype.kind == "f":
            values = (values + np.zeros(1, values.dtype)).view(f"u{values.dtype.itemsize}")
        for k in range(values.shape[1]):
            total = _mix(total + _mix(values[:, k].astype(np.uint64)))
    return total


def is_symmetric(
    comm: Communicator, low: int, indptr: Array, sources: Array, columns: Columns
) -> bool:
    """Compares two 64-bit sums over all edges, of (source, destination) and of the reverse.

    Unequal sums prove that the graph is not symmetric; equal ones of one that is not have a
    chance of 2^-64.
    """
    difference = np.zeros(1, np.uint64)
    destinations = np.repeat(np.arange(low, low + len(indptr) - 1), np.diff(indptr))
    for a in range(0, len(sources), _CHUNK):
        b = min(a + _CHUNK, len(sources))
        source, destination = _mix(sources[a:b]), _mix(destinations[a:b])
        attributes = _attribute_hash(columns, a, b)
        three = np.uint64(3)
        difference += _mix(source + three * destination + attributes).sum(dtype=np.uint64)
        difference -= _mix(destination + three * source + attributes).sum(dtype=np.uint64)
    return sum(comm.allgather(int(difference[0]))) % 2**64 == 0
