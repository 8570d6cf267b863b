"""Streaming finds communities, keeps limits and never reads more than a window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.pipeline import assign
from tests.partition.slabs import everywhere, make_problem

NODES, CLASSES, MOST = 1200, 8, 3000


@pytest.fixture(scope="module")
def communities():
    """Return a graph of eight planted communities in random order, four of five edges inside."""
    rng = np.random.default_rng(3)
    label = rng.permutation(NODES) % CLASSES
    source = rng.integers(0, NODES, 12 * NODES)
    members = np.argsort(label, kind="stable").reshape(CLASSES, -1)
    inside = members[label[source], rng.integers(0, NODES // CLASSES, len(source))]
    target = np.where(rng.random(len(source)) < 0.8, inside, rng.integers(0, NODES, len(source)))
    source, target = np.append(source, target), np.append(target, source)
    order = np.argsort(target, kind="stable")
    return source[order], target[order]


@pytest.mark.mpi
@pytest.mark.parametrize("all_on", [None, 0])
def test_streaming_finds_communities_window_by_window(comm, communities, all_on, monkeypatch):
    problem = make_problem(comm, communities, NODES, 4, all_on=all_on)
    read, sizes = problem.edges.read, []

    def counted(low, high):
        found = read(low, high)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(SlabEdges.windows, "__defaults__", (1, MOST))
    problem = replace(problem, edges=replace(problem.edges, read=counted))
    owner = everywhere(comm, assign(comm, "streaming", problem))
    assert max(sizes, default=0) <= MOST
    cut = (owner[communities[0]] != owner[communities[1]]).mean()
    assert cut < 0.35  # 0.75 for random parts, 0.15 for pairs of planted communities
    cost = 10 + np.bincount(communities[1], minlength=NODES)
    load = np.bincount(owner, weights=cost, minlength=4)
    assert load.max() <= 1.06 * load.mean()
