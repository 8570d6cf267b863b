"""What every partition method is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.sorting import Array, Int64, distinct_pairs, group_by
from hpcgnn.storage.read.graph_file import GraphSlab

MOST_COST = 1_000_000  # costs of all nodes and edges add up within 64 bits
MOST_PASSES = 1000


@dataclass(frozen=True)
class PartitionOptions:
    """How to cut. `imbalance` is the heaviest part's weight over the mean, at least 1.

    A node costs `node_cost + edge_cost * in-degree`; `balance_train` has the training nodes
    spread evenly too, at the price of a larger cut.
    """

    seed: int = 0
    imbalance: float = 1.05
    node_cost: int = 10
    edge_cost: int = 1
    balance_train: bool = False
    refine: int = 0

    def __post_init__(self) -> None:
        if not 1.0 < self.imbalance < 1000:
            raise InputError("--imbalance must be above 1", value=self.imbalance)
        costs = self.node_cost, self.edge_cost
        if not all(0 <= cost <= MOST_COST for cost in costs) or not any(costs):
            raise InputError(
                f"--node-cost and --edge-cost must lie in 0 .. {MOST_COST}, and not both be 0",
                value=costs,
            )
        if not 0 <= self.seed < 2**31:
            raise InputError("--seed must be in 0 .. 2^31 - 1", value=self.seed)
        if not 0 <= self.refine <= MOST_PASSES:
            raise InputError(f"--refine must lie in 0 .. {MOST_PASSES}", value=self.refine)


@dataclass(frozen=True)
class Problem:
    """A graph in slabs and into how many parts it is to be cut.

    cost, train: `[hi - lo]` int64 and bool, of the rows of this rank's slab.
    """

    slab: GraphSlab
    num_nodes: int
    num_parts: int
    cost: Int64
    train: Array
    options: PartitionOptions


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
        pairs.append([comm.alltoallv(chunks, where="partition: symmetrise") for chunks in sent])
    row = np.concatenate([chunk for one in pairs for chunk in one[0]])
    column = np.concatenate([chunk for one in pairs for chunk in one[1]])
    del pairs, rows, columns
    first, count = int(bounds[comm.rank]), int(bounds[comm.rank + 1] - bounds[comm.rank])
    return distinct_pairs(row - row.dtype.type(first), column, count, num_nodes)
