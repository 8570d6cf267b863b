"""Which share of the graph each layer works on, where few nodes are labelled.

As `graph.subgraph` prunes: the last layer is needed at the labelled nodes, the one before it at
those and their in-neighbours, and so on, as long as at most half of the edges are left. Labelled
nodes are taken to be random ones, degrees to be spread as in `halo`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.graph.subgraph import WORTHWHILE
from hpcgnn.train.config import Config
from hpcgnn.train.plan.halo import SPREAD, untouched

_FAR = ("appnp", "sgc", "dagnn")  # whose last operation looks many hops far


@dataclass(frozen=True)
class Share:
    """Of all nodes, those whose rows a layer reads and those it is needed at; of all edges, its."""

    read: float = 1.0
    written: float = 1.0
    edges: float = 1.0

    @property
    def pruned(self) -> bool:
        return self.edges < 1


def shares(config: Config, degree: float, labelled: float | None) -> list[Share]:
    """One for each convolution of a training pass; `labelled`: share of nodes that are targets."""
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
        # Edges end at nodes of many edges, which are reached more often than others.
        alone = untouched(degree * (SPREAD + 1) / SPREAD, target, SPREAD + 1)
        target, edges = source, 1 - (1 - target) * alone
    return found
