"""Orders compared with SciPy's, whose time grows with the square of a hub's neighbours."""

from __future__ import annotations

from time import process_time

import numpy as np
import pytest
from scipy.sparse import csgraph, csr_array

from hpcgnn.partition.layout.nearness import reverse_cuthill_mckee
from tests.partition.slabs import by_rows


@pytest.mark.parametrize("num_nodes", [1, 7, 8, 9, 300])
@pytest.mark.parametrize("degree", [0.3, 3, 9])
def test_orders_equal_scipys(num_nodes, degree):
    """With hubs, isolated nodes, self-loops and repeated edges."""
    rng = np.random.default_rng(num_nodes)
    count = 1 + int(degree * num_nodes)
    rows = (num_nodes * rng.random(count) ** 3).astype(int)
    columns = rng.integers(0, num_nodes, count)
    expected = csr_array((np.ones(count, bool), (rows, columns)), shape=(num_nodes, num_nodes))
    found = by_rows(num_nodes, rows, columns)
    assert np.array_equal(found.begin, expected.indptr)
    assert np.array_equal(found.neighbour, expected.indices)
    order = reverse_cuthill_mckee(found.both_ways())
    assert np.array_equal(order, csgraph.reverse_cuthill_mckee(expected))


def test_a_hub_costs_little_extra_time():
    """With insertion sort it took 2,000 times as long, half an hour for a million neighbours."""
    rng, num_nodes = np.random.default_rng(0), 200_000
    ends, hub = rng.integers(1, num_nodes, (2, 1_000_000)), np.arange(1, num_nodes)
    seconds = []
    for more in (np.empty((2, 0), int), np.stack([hub, np.zeros_like(hub)])):
        graph = by_rows(num_nodes, *np.concatenate([ends, more], axis=1)).both_ways()
        begin = process_time()
        reverse_cuthill_mckee(graph)
        seconds.append(process_time() - begin)
    assert seconds[1] < 50 * seconds[0]
