"""Sorting of large integer arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def sorted_unique(values: Array) -> Array:
    """Return the distinct values, ascending; far faster than `np.unique`, which hashes integers."""
    values = np.sort(values)
    new = np.ones(values.shape[0], bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return values[new]
