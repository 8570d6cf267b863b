"""Partitions that look at no edge: random and block."""

from __future__ import annotations

import numpy as np

from hpcgnn.partition.sorting import Array
from hpcgnn.storage.fingerprint import mix64

_ROUNDS = 4


def random_parts(ids: Array, num_nodes: int, num_parts: int, seed: int = 0) -> Array:
    """The part of each of `ids`, int32; parts differ by one node at most.

    A pseudo-random permutation of 0 .. num_nodes - 1 is cut into equal pieces. Any rank can ask
    for any node: the permutation is computed, not stored (a Feistel network on just enough bits,
    applied again while it leads out of the range).
    """
    half = max((num_nodes - 1).bit_length() + 1, 2) // 2
    place = np.asarray(ids).astype(np.uint64)
    outside = np.ones(len(place), bool)
    while outside.any():
        place[outside] = _feistel(place[outside], half, seed)
        outside = place >= num_nodes
    return _cut(place.astype(np.int64), num_nodes, num_parts)


def _feistel(values: Array, half: int, seed: int) -> Array:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for round_ in range(_ROUNDS):
        mixed = right + np.uint64((seed * _ROUNDS + round_) % 2**32 << 32)
        mix64(mixed)
        left, right = right, left ^ (mixed & mask)
    return (left << shift) | right


def block_parts(ids: Array, num_nodes: int, num_parts: int) -> Array:
    """Consecutive nodes in the order of the file, in equal numbers: int32."""
    return _cut(np.asarray(ids, np.int64), num_nodes, num_parts)


def _cut(place: Array, num_nodes: int, num_parts: int) -> Array:
    ends = num_nodes * np.arange(1, num_parts + 1, dtype=object) // num_parts
    return np.searchsorted(ends.astype(np.int64), place, side="right").astype(np.int32)
