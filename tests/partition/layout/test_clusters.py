import networkx
import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.partition.layout import library
from hpcgnn.partition.layout.blocks import local_order
from hpcgnn.partition.layout.clusters import order_by_cluster
from tests.partition.slabs import by_rows


def shuffled_caves(count, size, seed):
    """Return cliques connected by one edge each, with shuffled numbers: adjacency, clique [n]."""
    graph = networkx.connected_caveman_graph(count, size)
    new = np.random.default_rng(seed).permutation(count * size)
    rows, columns = new[np.array(graph.to_directed().edges).T]
    clique = np.empty(count * size, int)
    clique[new] = np.arange(count * size) // size
    return by_rows(count * size, rows, columns), clique


@pytest.mark.parametrize("limit", [5, 9, 40])
def test_clusters_are_contiguous(limit):
    adjacency, clique = shuffled_caves(30, 9, seed=limit)
    order = order_by_cluster(adjacency, np.random.default_rng(1).permutation(270), limit)
    np.testing.assert_array_equal(np.sort(order), np.arange(270))
    runs = 1 + np.count_nonzero(np.diff(clique[order]))
    assert runs == 30 if limit >= 9 else 30 < runs < 120, runs


def test_clusters_keep_the_order_of_the_traversal():
    adjacency, clique = shuffled_caves(6, 7, seed=0)
    visit = np.random.default_rng(2).permutation(42)
    place = np.argsort(visit)
    order = order_by_cluster(adjacency, visit)
    groups = np.split(order, np.flatnonzero(np.diff(clique[order])) + 1)
    assert len(groups) == 6
    assert all((np.diff(place[group]) > 0).all() for group in groups)
    assert (np.diff([place[group[0]] for group in groups]) > 0).all()


@pytest.mark.parametrize("num_nodes", [0, 1, 7])
def test_clusters_of_nodes_without_neighbours(num_nodes):
    visit = np.arange(num_nodes)[::-1]
    order = order_by_cluster(by_rows(num_nodes, *np.empty((2, 0), int)), visit)
    np.testing.assert_array_equal(order, visit)


@pytest.mark.parametrize("symmetric", [True, False])
def test_clusters_of_nodes_that_no_rank_reads_come_first(symmetric):
    adjacency, clique = shuffled_caves(5, 8, seed=3)
    sent = np.random.default_rng(4).random(40) < 0.4
    order = local_order(adjacency, sent, symmetric=symmetric)
    np.testing.assert_array_equal(np.sort(order), np.arange(40))
    assert (np.diff(sent[order].astype(int)) >= 0).all()
    for kept in (order[~sent[order]], order[sent[order]]):
        assert 1 + np.count_nonzero(np.diff(clique[kept])) == len(set(clique[kept]))


def test_a_library_that_was_not_built_is_reported(monkeypatch, tmp_path):
    adjacency = by_rows(1, *np.empty((2, 0), int))
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libhpcgnn_layout.so")
    with pytest.raises(InputError, match=r"pip install \."):
        order_by_cluster(adjacency, np.zeros(1))
