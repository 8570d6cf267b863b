"""Refinement of the communication volume, compared with counts by NumPy on the whole graph."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgnn.partition.pipeline import assign
from hpcgnn.partition.quality import Readers
from hpcgnn.partition.refine import refine_volume
from hpcgnn.partition.routing import Slabs
from tests.partition.slabs import everywhere, grid_edges, make_problem, random_edges

GRAPHS = {
    "grid": (grid_edges(24, 24), 576),
    "random": (random_edges(150, 500), 150),
    "empty": (random_edges(9, 0), 9),
}


def copies(edges, owner, num_parts):
    """Return (sender, reader) counts `[P, P]` of rows sent, and for each row its readers."""
    source, target = edges
    pairs = np.unique(np.stack([source, owner[target]]), axis=1)
    pairs = pairs[:, owner[pairs[0]] != pairs[1]]
    table = np.zeros((num_parts, num_parts), int)
    np.add.at(table, (owner[pairs[0]], pairs[1]), 1)
    return table


@pytest.mark.mpi
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("num_parts", [2, 5, 70])
def test_readers_count_the_rows_sent(comm, name, num_parts):
    edges, n = GRAPHS[name]
    problem = make_problem(comm, edges, n, num_parts)
    owner = assign(comm, "random", problem)
    slabs = Slabs(comm, problem.edges.lo, problem.edges.hi, n)
    readers = Readers(comm, problem, owner, lambda ids: slabs.lookup(ids, owner))
    sent, halo = readers.volume(comm)
    table = copies(edges, everywhere(comm, owner), num_parts)
    assert np.array_equal(sent, table.sum(axis=1)) and np.array_equal(halo, table.sum(axis=0))
    counts = np.zeros((n, num_parts), int)
    np.add.at(counts, (edges[0], everywhere(comm, owner)[edges[1]]), 1)
    words = everywhere(comm, readers.single), everywhere(comm, readers.present)
    for part in range(num_parts):
        single, present = (w[:, part // 64] >> np.uint64(part % 64) & np.uint64(1) for w in words)
        assert np.array_equal(single == 1, counts[:, part] == 1)
        assert np.array_equal(present == 1, counts[:, part] > 0)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "all_on"), [("grid", None), ("random", None), ("grid", 1), ("empty", 1)]
)
def test_refinement_lowers_the_volume_and_raises_no_figure(comm, name, all_on):
    edges, n = GRAPHS[name]
    problem = make_problem(comm, edges, n, 4, all_on=all_on)
    owner = assign(comm, "streaming" if name != "grid" else "random", problem)
    refined = refine_volume(comm, problem, owner)
    if all_on is None:
        assert np.array_equal(refined, refine_volume(comm, problem, owner))
    before, after = (copies(edges, everywhere(comm, o), 4) for o in (owner, refined))
    for count in (np.sum, lambda t: t.sum(axis=1).max(), lambda t: t.sum(axis=0).max()):
        assert count(after) <= count(before)
    cost = 10 + np.bincount(edges[1], minlength=n)
    old, new = (
        np.bincount(everywhere(comm, o), weights=cost, minlength=4) for o in (owner, refined)
    )
    assert new.max() <= max(old.max(), 1.05 * old.mean())
    if name == "grid":
        assert after.sum() < 0.8 * before.sum()
