"""Random numbers addressed by position, and pairs of nodes drawn from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpcgnn.storage.fingerprint import mix64

CLASS, DEGREE, SPLIT, FEATURES, MEANS, COUNTS, EDGES = range(7)
_MASK = (1 << 64) - 1


def uniform(seed: int, purpose: int, low: int, high: int) -> np.ndarray:
    """Return one float64 in [0, 1) for each of the numbers `low .. high - 1`."""
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
    """Return an independent random stream for each (seed, purpose, first, second)."""
    key = [seed & _MASK, purpose]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, first, second]))


_ROUNDS = 100


def first_distinct(draw: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Return the first `count` distinct keys of `draw(n)` (about n keys, with repetitions).

    Fewer are returned if too few were found after many rounds, as the block is nearly full.
    """
    keys = np.empty(0, np.int64)
    for _ in range(_ROUNDS):
        missing = count - keys.size
        if missing <= 0:
            break
        keys = in_order_of_appearance(np.concatenate([keys, draw(missing + missing // 8 + 16)]))
    return keys[:count]


def in_order_of_appearance(keys: np.ndarray) -> np.ndarray:
    """Return each key once, in order of first appearance."""
    first = np.unique(keys, return_index=True)[1]
    first.sort()
    return keys[first]


def share_out(total: int, weights: np.ndarray, offset: float) -> np.ndarray:
    """Return integers within 1 of their share of `total`, with sum `total`: int64 `[len(weights)]`.

    `offset`, random in [0, 1), decides which entries are rounded up; the mean over it is the exact
    share.
    """
    running = np.cumsum(weights, dtype=np.float64)
    if running.size == 0 or running[-1] <= 0:
        return np.zeros(weights.shape, np.int64)
    ends = np.floor(running * (total / running[-1]) + offset).astype(np.int64)
    ends[-1] = total
    return np.diff(np.minimum(ends, total), prepend=0)


def neighbour_lists(
    slab: int,
    num_slabs: int,
    block: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    lo: int,
    hi: int,
    num_nodes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return in-neighbours of a slab's nodes `lo .. hi - 1`: counts int64 [n], indices int64 [e].

    `block(first, second)`, first <= second, returns both ends of the undirected edges between two
    slabs.
    """
    keys = []
    for other in range(num_slabs):
        one, two = block(min(slab, other), max(slab, other))
        if slab <= other:
            keys.append((one - lo) * num_nodes + two)
        if slab >= other:
            keys.append((two - lo) * num_nodes + one)
    edges = np.concatenate(keys)
    edges.sort()
    counts = np.diff(np.searchsorted(edges, np.arange(hi - lo + 1) * num_nodes))
    edges %= num_nodes
    return counts, edges
