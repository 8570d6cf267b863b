"""The graph as a partitioner wants it: undirected, no self-loops, no repeated edges."""

from __future__ import annotations

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.sorting import Array, Int64, distinct_pairs, group_by


def symmetrise(
    comm: Communicator, low: int, indptr: Int64, sources: Array, bounds: Int64
) -> tuple[Int64, Array]:
    """Neighbours of the rows `bounds[rank] .. bounds[rank + 1] - 1`, ascending. All ranks call.

    Args:
        low, indptr, sources: this rank's slab of in-neighbour lists, rows `low ..`.
        bounds: int64 `[size + 1]`, who is to hold which rows; need not be as the slabs are.

    Returns:
        `indptr` int64 `[rows + 1]` and the neighbours, one entry for each direction of each edge.
    """
    num_nodes = int(bounds[-1])
    narrow = np.int32 if num_nodes < 2**31 else np.int64
    rows = np.repeat(np.arange(low, low + len(indptr) - 1, dtype=narrow), np.diff(indptr))
    columns = sources.astype(narrow, copy=False)
    ends = rows != columns
    rows, columns = rows[ends], columns[ends]
    pairs = []
    for row, column in ((rows, columns), (columns, rows)):
        target = np.searchsorted(bounds[1:], row, side="right")
        cuts, order = group_by(target, comm.size)
        sent = [np.split(values[order], cuts[1:-1]) for values in (row, column)]
        pairs.append([comm.alltoallv(pieces, where="partition: symmetrise") for pieces in sent])
    row = np.concatenate([piece for one in pairs for piece in one[0]])
    column = np.concatenate([piece for one in pairs for piece in one[1]])
    del pairs, rows, columns
    first, count = int(bounds[comm.rank]), int(bounds[comm.rank + 1] - bounds[comm.rank])
    return distinct_pairs(row - row.dtype.type(first), column, count, num_nodes)
