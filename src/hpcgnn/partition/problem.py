"""What every partition method is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcgnn.errors import InputError
from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.sorting import Array, Int64

MOST_COST = 1_000_000  # costs of all nodes and edges add up within 64 bits
QUALITIES = ("fast", "default", "strong")
REFINEMENTS = ("none", "volume")


@dataclass(frozen=True)
class PartitionOptions:
    """How to cut. `imbalance` is the heaviest part's weight over the mean, at least 1.

    A node costs `node_cost + edge_cost * in-degree`; `balance_train` has the training nodes
    spread evenly too, at the price of a larger cut. `quality` is one of QUALITIES (KaMinPar);
    `repeatable` has it use one thread, for the same parts in every run. `refine` is one of
    REFINEMENTS, after any method.
    """

    seed: int = 0
    imbalance: float = 1.05
    node_cost: int = 10
    edge_cost: int = 1
    balance_train: bool = False
    refine: str = "none"
    quality: str = "default"
    repeatable: bool = False

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
        for name, known in (("refine", REFINEMENTS), ("quality", QUALITIES)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"--{name} must be one of {', '.join(known)}", value=getattr(self, name)
                )


@dataclass(frozen=True)
class Problem:
    """A graph in slabs and into how many parts it is to be cut.

    edges: of this rank's slab, rows `lo .. hi - 1`; the slabs of all ranks follow each other.
    cost, train: `[hi - lo]` int64 and bool, of the rows of this rank's slab.
    notes: lines on how it went, which methods add on rank 0.
    """

    edges: SlabEdges
    num_nodes: int
    num_parts: int
    cost: Int64
    train: Array
    options: PartitionOptions
    notes: list[str] = field(default_factory=list)
