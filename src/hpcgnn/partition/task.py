"""What every partition method is given."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.partition.sorting import Array, Int64
from hpcgnn.storage.graph_file import Slab

MOST_COST = 1_000_000  # costs of all nodes and edges add up within 64 bits
MOST_PASSES = 1000


@dataclass(frozen=True)
class Options:
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
class Task:
    """A graph in slabs and into how many parts it is to be cut.

    cost, train: `[hi - lo]` int64 and bool, of the rows of this rank's slab.
    """

    slab: Slab
    num_nodes: int
    num_parts: int
    cost: Int64
    train: Array
    options: Options
