"""The number of remote rows that the parts of a graph read, if it isn't partitioned yet.

A node whose edges go to random parts is read by

    (P - 1) (1 - E[(1 - 1/P)^D])

of the P - 1 others. If the degrees D, of mean d, have a gamma distribution of shape k, the
expectation is (1 + d q / k)^-k with q = -ln(1 - 1/P). Partitioning leaves a share of that. Both
constants are fitted to KaMinPar's parts of three real graphs (170,000, 34,000 and 14,000 nodes, 14
to 36 edges per node) at 2 to 64 parts, which lie within a factor of 1.6 of the model; see
docs/memory.md. A graph without structure keeps three to four times as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SPREAD = 0.8  # k
KEPT = 0.25  # share of a random partition's halo that partitioning leaves


@dataclass(frozen=True)
class Halo:
    """Numbers of remote rows: of all parts together, and of the part that reads most."""

    volume: int
    largest: int


def untouched(degree: float, share: float, spread: float = SPREAD) -> float:
    """Return the chance that no edge of a node ends in a random set of this share of all nodes."""
    if share >= 1:
        return 0.0
    return float((1 - degree * math.log1p(-share) / spread) ** -spread)


def thinned(degree: float, share: float, ranks: int) -> float:
    """Return the halo rows with this share of the edges, over those with all edges."""
    if share >= 1 or ranks == 1:
        return 1.0
    left, all_of_them = (1 - untouched(degree * part, 1 / ranks) for part in (share, 1.0))
    return left / all_of_them if all_of_them else 1.0


def heaviest(ranks: int) -> float:
    """Return the ratio of the halo rows of the part that reads most to the mean."""
    return 1 + 0.2 * math.log2(ranks)


def modelled(nodes: int, degree: float, ranks: int, kept: float = KEPT) -> Halo:
    """Return the modelled halo, by the number of nodes and of edges per node."""
    if ranks == 1:
        return Halo(0, 0)
    per_node = kept * (ranks - 1) * (1 - untouched(degree, 1 / ranks))
    return _bounded(nodes * per_node, nodes, ranks)


def by_fraction(nodes: int, fraction: float, ranks: int) -> Halo:
    """Return the halo by a mean number of halo rows per local node."""
    return Halo(0, 0) if ranks == 1 else _bounded(nodes * fraction, nodes, ranks)


def _bounded(volume: float, nodes: int, ranks: int) -> Halo:
    """Return the halo, bounded so that no part reads more than all nodes of the others."""
    most = nodes * (ranks - 1) / ranks
    volume = min(volume, most * ranks)
    return Halo(round(volume), round(min(most, heaviest(ranks) * volume / ranks)))
