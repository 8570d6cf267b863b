"""Slabs of small graphs on the ranks of a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcgnn.comm.communicator import Communicator
from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.layout.nearness import Adjacency
from hpcgnn.partition.options import PartitionOptions
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.routing import group_by
from hpcgnn.storage.read.graph_file import GraphSlab
from hpcgnn.storage.write.graph_writer import GraphWriter


def grid_edges(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of a grid, each in both directions, by ascending target."""
    node = np.arange(width * height).reshape(height, width)
    right = np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()])
    down = np.stack([node[:-1].ravel(), node[1:].ravel()])
    source, target = np.concatenate([right, right[::-1], down, down[::-1]], axis=1)
    order = np.lexsort((source, target))
    return source[order], target[order]


def random_edges(num_nodes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random edges with self-loops and repetitions, by ascending target."""
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, num_nodes, (2, count))
    again = rng.integers(0, max(count, 1), count // 4)
    source, target = np.append(source, source[again]), np.append(target, target[again])
    order = np.argsort(target, kind="stable")
    return source[order], target[order]


def slab_of(source: np.ndarray, target: np.ndarray, low: int, high: int) -> GraphSlab:
    a, b = np.searchsorted(target, (low, high))
    counts = np.bincount(target[a:b] - low, minlength=high - low)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return GraphSlab(low, high, indptr, source[a:b].astype(np.int64))


def by_rows(num_nodes: int, rows: np.ndarray, columns: np.ndarray) -> Adjacency:
    """Return the adjacency of edges in any order."""
    begin, order = group_by(rows, num_nodes)
    return Adjacency.of(begin, columns[order])


def make_problem(
    comm: Communicator,
    edges: tuple[np.ndarray, np.ndarray],
    num_nodes: int,
    num_parts: int,
    *,
    all_on: int | None = None,
    options: PartitionOptions | None = None,
) -> Problem:
    """Return a problem in even slabs or with all rows on `all_on`; every seventh node trains."""
    cuts = num_nodes * np.arange(comm.size + 1) // comm.size
    if all_on is not None:
        cuts = np.where(np.arange(comm.size + 1) <= all_on % comm.size, 0, num_nodes)
    low, high = int(cuts[comm.rank]), int(cuts[comm.rank + 1])
    slab = slab_of(*edges, low, high)
    cost = 10 + np.diff(slab.indptr)
    train = np.arange(low, high) % 7 == 0
    return Problem(edges_of(slab), num_nodes, num_parts, cost, train, options or PartitionOptions())


def edges_of(slab: GraphSlab) -> SlabEdges:
    """Return the edges of the problem, as a method reads them."""

    def read(low: int, high: int) -> np.ndarray:
        return slab.indices[slab.indptr[low - slab.lo] : slab.indptr[high - slab.lo]]

    return SlabEdges(slab.lo, slab.hi, slab.indptr, read)


def everywhere(comm: Communicator, owner: np.ndarray) -> np.ndarray:
    """Return the owners of all rows, on all ranks."""
    return np.concatenate(comm.allgather(owner))


def write_graph(path: Path, edges: tuple[np.ndarray, np.ndarray], num_nodes: int) -> Path:
    """Write a graph file with two features, labels and a split."""
    slab = slab_of(*edges, 0, num_nodes)
    rng = np.random.default_rng(0)
    with GraphWriter(path, num_nodes=num_nodes, config={}) as writer:
        writer.append_rows(np.diff(slab.indptr), slab.indices)
        writer.append_features(rng.normal(size=(num_nodes, 2)).astype(np.float32))
        writer.append_labels(rng.integers(0, 3, num_nodes))
        writer.append_split(rng.integers(0, 4, (num_nodes, 1)).astype(np.int8))
    return path
