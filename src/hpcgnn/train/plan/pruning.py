"""The share of the graph that each layer works on, if few nodes are labelled.

As in `graph.subgraph`: the last layer is needed at the labelled nodes, the one before it at those
and their in-neighbours, and so on, as long as at most half of the edges are left. Labelled nodes
are assumed to be random, and degrees to be distributed as in `halo`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.graph.subgraph import WORTHWHILE
from hpcgnn.train.config import Config
from hpcgnn.train.plan.halo import SPREAD, untouched

_FAR = ("appnp", "sgc", "dagnn")  # their last operation spans many hops


@dataclass(frozen=True)
class Share:
    """The shares of nodes that a layer reads and is needed at, and of edges that it uses."""

    read: float = 1.0
    written: float = 1.0
    edges: float = 1.0

    @property
    def pruned(self) -> bool:
        return self.edges < 1


def shares(config: Config, degree: float, labelled: float | None) -> list[Share]:
    """Return a share per convolution of a training pass; `labelled`: share of target nodes."""
    model, count = config.model, config.model.layers
    found = [Share()] * count
    whole = model.norm in ("batch", "graph") or model.jumping != "none" or model.kind in _FAR
    if whole or labelled is None or not config.streaming.prune:
        return found
    target, edges = labelled, labelled
    for layer in range(count - 1, 0, -1):
        if edges > WORTHWHILE:
            break
        source = 1 - (1 - target) * untouched(degree, target)
        found[layer] = Share(source, target, edges)
        # Edges tend to end at nodes with many edges, which are reached more often than others.
        alone = untouched(degree * (SPREAD + 1) / SPREAD, target, SPREAD + 1)
        target, edges = source, 1 - (1 - target) * alone
    return found
