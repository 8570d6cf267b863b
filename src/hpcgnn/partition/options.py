"""The options of a partition; loads no MPI, so that a mistyped option is refused without it."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError

METHODS = ("auto", "parmetis", "kaminpar", "streaming", "random", "block")
QUALITIES = ("fast", "default", "strong")
REFINEMENTS = ("none", "volume")
_MOST_COST = 1_000_000  # costs of all nodes and edges add up within 64 bits


@dataclass(frozen=True)
class PartitionOptions:
    """Options of a partition.

    `imbalance` is the most that the heaviest part's weight may be over the mean, above 1. A node
    costs `node_cost + edge_cost * in-degree`; `balance_train` spreads the training nodes evenly
    too, at the price of a larger cut. `quality` is one of QUALITIES (KaMinPar); `repeatable` makes
    it use one thread, for the same parts in every run. `refine` is one of REFINEMENTS, applied
    after any method.
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
            raise InputError("--imbalance must be above 1 and below 1000", value=self.imbalance)
        for option, cost in (("--node-cost", self.node_cost), ("--edge-cost", self.edge_cost)):
            if not 0 <= cost <= _MOST_COST:
                raise InputError(f"{option} must lie in 0 .. {_MOST_COST}", value=cost)
        if not (self.node_cost or self.edge_cost):
            raise InputError("--node-cost and --edge-cost must not both be 0")
        if not 0 <= self.seed < 2**31:
            raise InputError("--seed must be in 0 .. 2^31 - 1", value=self.seed)
        for name, known in (("refine", REFINEMENTS), ("quality", QUALITIES)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"--{name} must be one of {', '.join(known)}", value=getattr(self, name)
                )
