"""Edges of two 4-byte ends, compared with the same steps in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hpcgnn.storage.importers.buckets import in_buckets
from hpcgnn.storage.importers.ends import PAIR, mark, pack, unpack


@pytest.mark.parametrize("layout", ["rows", "columns", "apart"])
def test_ends_are_packed_with_their_bounds(layout):
    ends = np.random.default_rng(1).integers(-5, 1 << 40, (2, 77))
    if layout == "rows":
        ends = np.asfortranarray(ends)
    sources, destinations = (ends[0], ends[1]) if layout != "apart" else (ends[0], ends[1].copy())
    if layout == "apart":
        sources = np.repeat(sources, 3)[::3]
    out = np.empty(77, PAIR)
    bounds = pack(sources, destinations, out)
    assert bounds.tolist() == [[row.min(), row.max()] for row in ends]
    assert (out["source"] == ends[0].astype(np.int32)).all()
    assert (out["destination"] == ends[1].astype(np.int32)).all()


@pytest.mark.parametrize("dtype", [PAIR, [("source", "i8"), ("destination", "i8"), ("w", "f4")]])
def test_nodes_are_marked_once(dtype):
    edges = np.zeros(6, dtype)
    edges["source"], edges["destination"] = [0, 1, 1, 5, 2, 0], [1, 0, 5, 5, 8, 2]
    there = np.zeros(9, bool)
    assert [mark(edges[:3], there), mark(edges[3:], there)] == [3, 2]
    assert np.flatnonzero(there).tolist() == [0, 1, 2, 5, 8]


def test_nodes_above_four_bytes_are_marked():
    edges = np.zeros(2, [("source", "i8"), ("destination", "i8")])
    edges["source"], edges["destination"] = [(1 << 31) + 5, 0], [(1 << 32) + 1, 0]
    there = np.zeros((1 << 32) + 2, bool)  # the system provides only what is written to
    assert mark(edges, there) == 3
    assert there[[(1 << 31) + 5, (1 << 32) + 1, 0, 1]].tolist() == [True, True, True, False]


def test_sources_and_counts_are_unpacked():
    edges = np.zeros(5, PAIR)
    edges["source"], edges["destination"] = [9, 9, 3, 4, 0], [11, 11, 12, 15, 15]
    sources, counts = unpack(edges, 10, 18)
    assert sources.tolist() == [9, 9, 3, 4, 0]
    assert counts.tolist() == [0, 2, 1, 0, 0, 2, 0, 0]
    assert [len(array) for array in unpack(edges[:0], 4, 6)] == [0, 2]


@pytest.mark.parametrize("high", [1, 1000, 1 << 20, (1 << 31) - 1])
@pytest.mark.parametrize("number", [1, 255, 40_000, 400_000])
def test_numbers_are_sorted_in_buckets(number, high):
    """The largest numbers are few and follow late, so that the sample misses them."""
    rng = np.random.default_rng(number)
    numbers = rng.integers(0, high, number) << 32 | rng.integers(0, high, number)
    numbers[number // 2 :: 9999] = (1 << 63) - 1 - rng.integers(0, 1 << 40)
    wanted = np.sort(numbers)
    found = list(in_buckets(numbers, 32, 8 * number))
    assert (np.concatenate(found) == wanted).all()
    ends = [part[[0, -1]] >> 32 for part in found if len(part)]
    assert all(before[1] < after[0] for before, after in pairwise(ends))
