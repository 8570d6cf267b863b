"""The linear-time helpers compared with NumPy's sorts."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgnn.partition import routing


@pytest.mark.parametrize("count", [0, 1, 7, 500])
@pytest.mark.parametrize("bound", [1, 9, 10**9], ids=["one", "table", "sort"])
def test_distinct_values(count, bound):
    values = np.random.default_rng(count).integers(0, bound, count)
    found, place = routing.distinct(values, bound)
    assert np.array_equal(found, np.unique(values))
    assert np.array_equal(found[place], values)


@pytest.mark.parametrize("count", [0, 1, 7, 500])
@pytest.mark.parametrize("bound", [1, 9, 10**9], ids=["one", "table", "sort"])
def test_values_renumbered_in_place(count, bound):
    values = np.random.default_rng(count).integers(0, bound, count).astype(np.int32)
    before = values.copy()
    found = routing.renumber(values, bound)
    assert np.array_equal(found, np.unique(before))
    assert np.array_equal(found[values], before)


@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_group_by_is_stable(count):
    keys = np.random.default_rng(count).integers(0, 9, count)
    starts, order = routing.group_by(keys, 9)
    assert np.array_equal(order, np.argsort(keys, kind="stable"))
    assert np.array_equal(np.diff(starts), np.bincount(keys, minlength=9))


@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_tally_counts_values(count):
    keys = np.random.default_rng(count).integers(-9, 9, count)
    found, counts = routing.tally(keys.copy())
    expected = np.unique(keys, return_counts=True)
    assert np.array_equal(found, expected[0]) and np.array_equal(counts, expected[1])


def test_positions_of_the_edges_of_unsorted_rows():
    indptr = np.array([0, 2, 2, 5, 6])
    assert routing.edge_positions(indptr, np.array([3, 1, 0, 2])).tolist() == [5, 0, 1, 2, 3, 4]
    assert routing.edge_positions(indptr, np.empty(0, np.int64)).tolist() == []
