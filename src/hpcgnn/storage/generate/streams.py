"""Random numbers that depend on a seed and on what they are for, never on who draws them."""

from __future__ import annotations

import numpy as np

from hpcgnn.storage.fingerprint import mix64

CLASS, DEGREE, SPLIT, FEATURES, MEANS, COUNTS, EDGES = range(7)

_MASK = (1 << 64) - 1


def uniform(seed: int, purpose: int, low: int, high: int) -> np.ndarray:
    """One float64 in [0, 1) for each of the numbers `low .. high - 1`."""
    key = np.array([seed & _MASK], np.uint64)
    mix64(key)
    key += np.uint64(purpose)
    mix64(key)
    bits = np.arange(low, high, dtype=np.uint64)
    bits += key
    mix64(bits)
    bits ^= key
    mix64(bits)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, purpose: int, first: int = 0, second: int = 0) -> np.random.Generator:
    """A stream of its own for each (seed, purpose, first, second)."""
    key = [seed & _MASK, purpose]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, first, second]))
