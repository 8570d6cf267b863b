"""Random numbers without state: each is a function of a key and of the number it is drawn for.

The draws therefore depend neither on the number of ranks nor on the order of the work.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def key_of(*numbers: int) -> int:
    """Return one key for seed, epoch and other numbers that tell random streams apart."""
    key = 0
    for number in numbers:
        key = int(_mixed(np.array([(key + number + _GOLDEN) & _MASK], np.uint64))[0])
    return key


def unit(key: int, number: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
    """Return uniform numbers in [0, 1): float64.

    Args:
        number: int64, the number of the node, edge or other item that each draw is for.
        which: int64, which of the item's draws it is; None: its only one.
    """
    golden = np.uint64(_GOLDEN)
    word = _mixed(number.astype(np.uint64) * golden + np.uint64(key))
    if which is not None:
        word = _mixed(word + which.astype(np.uint64) * golden)
    return (word >> np.uint64(11)).astype(np.float64) / (1 << 53)


def below(key: int, limit: int, number: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return uniform integers in 0 .. limit - 1: int64."""
    return np.minimum((unit(key, number, which) * limit).astype(np.int64), limit - 1)


def _mixed(word: np.ndarray) -> np.ndarray:
    """Apply the mixing function of splitmix64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = word ^ (word >> np.uint64(31))
    return mixed
