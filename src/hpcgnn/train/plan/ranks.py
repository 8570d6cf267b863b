"""The fewest ranks on which a run fits."""

from __future__ import annotations

from collections.abc import Callable

from hpcgnn.train.config import Config
from hpcgnn.train.plan.estimate import Memory, Shape, estimate

MOST_RANKS = 1 << 20


def smallest_ranks(
    shape_at: Callable[[int], Shape],
    config: Config,
    limit: int,
    start: int = 1,
    memory: Callable[[Shape], Memory] | None = None,
) -> int | None:
    """Return the smallest number of ranks from `start` whose estimate is at most `limit` bytes.

    Args:
        memory: function of a shape, instead of `estimate`.

    Above 64 ranks the search takes steps of 1/64. None if no number up to `MOST_RANKS` fits.
    """
    ranks = start
    while ranks <= MOST_RANKS:
        shape = shape_at(ranks)
        if (estimate(shape, config) if memory is None else memory(shape)).peak <= limit:
            return ranks
        ranks += max(1, ranks // 64)
    return None
