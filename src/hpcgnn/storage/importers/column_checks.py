"""Checks that the columns of the nodes share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcgnn.storage.importers.source import Column


def counted(column: Column, num_nodes: int) -> Iterator[np.ndarray]:
    """The pieces, once their number of rows is known not to exceed `num_nodes`."""
    count = 0
    for rows in column.pieces:
        count += rows.shape[0]
        if count > num_nodes:
            break
        yield rows
    if count != num_nodes:
        more = "more" if count > num_nodes else "fewer"
        raise column.error(f"has {more} rows than there are nodes ({num_nodes})", count)


def check_bounds(values: np.ndarray, low: int, high: int, column: Column, what: str) -> None:
    bad = (values < low) | (values >= high)
    if bad.any():
        raise column.error(f"{what} lie in {low} .. {high - 1}", values[bad].flat[0])


def add_counts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 sums of two lists of counts, the longer one leading."""
    out = np.zeros(max(a.shape[0], b.shape[0]), np.int64)
    out[: a.shape[0]] += a
    out[: b.shape[0]] += b
    return out
