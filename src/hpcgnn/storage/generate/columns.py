"""Features and splits of generated nodes."""

from __future__ import annotations

import numpy as np

from hpcgnn.storage.generate import streams
from hpcgnn.storage.schema import TEST, TRAIN, VALID

_SLAB_VALUES = 1 << 22


class FeatureColumns:
    """Features: the mean of a node's class, a random vector of length about one, plus noise.

    Args:
        num_features, num_classes: F and C; without classes the features are noise.
        noise: standard deviation of each feature around the mean.
    """

    def __init__(
        self, num_nodes: int, num_features: int, num_classes: int, seed: int, noise: float
    ) -> None:
        self.num_nodes = num_nodes
        self.seed = seed
        self.noise = noise
        self.slab_rows = max(1, min(1 << 20, _SLAB_VALUES // max(1, num_features)))
        self.num_slabs = -(-num_nodes // self.slab_rows)
        means = streams.generator(seed, streams.MEANS).standard_normal((num_classes, num_features))
        self._means_CF = (means / np.sqrt(max(1, num_features))).astype(np.float32)

    def slab(self, index: int) -> tuple[int, int]:
        """Nodes `lo .. hi - 1` of a slab."""
        lo = index * self.slab_rows
        return lo, min(self.num_nodes, lo + self.slab_rows)

    def features(self, index: int, labels: np.ndarray | None) -> np.ndarray:
        """Features of a slab's nodes, whose classes are `labels`: float32 [n, F]."""
        lo, hi = self.slab(index)
        random = streams.generator(self.seed, streams.FEATURES, index)
        x_NF = random.standard_normal((hi - lo, self._means_CF.shape[1]), dtype=np.float32)
        x_NF *= np.float32(self.noise)
        if labels is not None:
            x_NF += self._means_CF[labels]
        return x_NF


def split(seed: int, lo: int, hi: int, shares: tuple[float, float, float]) -> np.ndarray:
    """Train, valid or test for each of the nodes `lo .. hi - 1`, in these shares: int8 [n]."""
    draw = streams.uniform(seed, streams.SPLIT, lo, hi) * sum(shares)
    chosen = np.full(hi - lo, TEST, np.int8)
    chosen[draw < shares[0] + shares[1]] = VALID
    chosen[draw < shares[0]] = TRAIN
    return chosen
