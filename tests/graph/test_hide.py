"""Graphs without some of their edges, beside graphs that never had them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcgnn import nn
from hpcgnn.errors import InputError
from hpcgnn.graph.hide import without_edges
from hpcgnn.graph.places import EdgeEnds, FindPlaces
from tests.graphs import Whole, collect, distribute, random_graph

pytestmark = pytest.mark.mpi


def left(whole: Whole, hidden: np.ndarray) -> Whole:
    kept = ~hidden
    return replace(
        whole, source=whole.source[kept], target=whole.target[kept], weight=whole.weight[kept]
    )


def hide(comm, whole: Whole, hides):
    """Without the edges for which `hides(source ids, target ids)`."""
    graph = distribute(whole, comm)
    places = graph.derived(FindPlaces())
    ends = graph.derived(EdgeEnds())
    ids = [places.look_up(end, graph.node_ids.numpy()) for end in ends]
    return without_edges(graph, torch.from_numpy(hides(*ids)))


def by_pair(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The same for parallel edges and for both directions."""
    low, high = np.sort([source, target], axis=0)
    return (low * 7 + high * 3) % 4 == 0


def by_direction(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return (source + target * 2) % 4 == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_as_if_never_there(comm, symmetric):
    whole = random_graph(29, 140, seed=2, symmetric=symmetric, weighted=True)
    hides = by_pair if symmetric else by_direction
    hidden = hides(whole.source, whole.target)
    rows = []
    for graph in (hide(comm, whole, hides), distribute(left(whole, hidden), comm)):
        assert graph.num_edges == (~hidden).sum() and graph.symmetric == symmetric
        torch.manual_seed(0)
        layer = nn.GCNConv(5, 4)
        x = graph.features.clone().requires_grad_()
        out = layer(graph, x)
        (out * out.detach().cos()).sum().backward()
        rows.append((collect(graph, out), collect(graph, x.grad)))
    for found, right in zip(*rows, strict=True):
        torch.testing.assert_close(found, right)


def test_halves_of_an_edge_are_refused(comm):
    whole = random_graph(29, 140, seed=2, symmetric=True)
    with pytest.raises(InputError, match="an undirected edge is split otherwise in its two"):
        hide(comm, whole, by_direction)

    def first_of_parallel(source, target):
        _, first, back, counts = np.unique(source * 29 + target, True, True, True)
        return (counts[back] > 1) & np.isin(np.arange(len(source)), first)

    with pytest.raises(InputError, match="of several edges between the same two nodes some have"):
        hide(comm, random_graph(29, 140, seed=2), first_of_parallel)
