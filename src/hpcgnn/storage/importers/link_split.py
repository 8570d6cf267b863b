"""A split of the edges into those to learn from and those to be predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcgnn.errors import InputError
from hpcgnn.graph.draws import key_of, unit
from hpcgnn.storage.schema import TEST, TRAIN, VALID


@dataclass(frozen=True)
class LinkSplit:
    """Which split an edge is of follows from its two nodes and a seed.

    So both directions of an undirected edge, and parallel edges, are of one split, and nothing has
    to be kept in memory; the shares are met as nearly as chance does. What is left over, and
    self-loops, are for messages alone.

    Attributes:
        shares: of the edges, for train, valid and test.
    """

    shares: tuple[float, float, float]
    seed: int

    @staticmethod
    def of(text: str, seed: int) -> LinkSplit:
        """From `0.8,0.1,0.1`.

        Raises:
            InputError: it is no three shares of at least 0, together at most 1.
        """
        try:
            shares = tuple(float(part) for part in text.split(","))
        except ValueError:
            shares = ()
        good = len(shares) == 3 and all(math.isfinite(s) and s >= 0 for s in shares)
        if not good or sum(shares) > 1 + 1e-9:
            raise InputError(
                "--link-split takes three shares for train, valid and test, together at most 1, "
                "such as 0.8,0.1,0.1",
                value=text,
            )
        return LinkSplit((shares[0], shares[1], shares[2]), seed)

    def codes(self, counts: np.ndarray, sources: np.ndarray, first: int) -> np.ndarray:
        """int8 per edge of some consecutive nodes' lists.

        Args:
            counts: edges into each of the nodes `first` and on.
            sources: where they come from.
        """
        targets = np.repeat(np.arange(first, first + len(counts), dtype=np.int64), counts)
        low, high = np.minimum(sources, targets), np.maximum(sources, targets)
        place = np.searchsorted(
            np.cumsum(self.shares), unit(key_of(self.seed), low, high), side="right"
        )
        codes = np.array([TRAIN, VALID, TEST, 0], np.int8)[place]
        codes[low == high] = 0
        return codes
