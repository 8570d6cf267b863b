"""Every part compared with the edge list it came from, on small graphs."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.partition import routing
from hpcgnn.partition.layout import assembly, blocks, columns
from hpcgnn.partition.layout.sources import HeldSource
from hpcgnn.storage.read.graph_file import GraphSlab
from hpcgnn.storage.read.nodes import CsrRows, NodeData


class Graph:
    """A random edge list with repeated edges, self-loops and isolated nodes, equal on all ranks."""

    def __init__(self, num_nodes, degree, *, symmetric=False, attributes=(), seed=0):
        rng = np.random.default_rng(seed)
        self.n, count = num_nodes, num_nodes * degree
        busy = max(1, num_nodes * 3 // 4)
        source, target = rng.integers(0, busy, (2, count))
        repeated = rng.integers(0, max(count, 1), count // 4)
        values = {
            "relation": rng.integers(0, 2, count).astype(np.int32),
            "weight": rng.integers(0, 3, count).astype(np.float32),
            "features": rng.integers(0, 2, (count, 2)).astype(np.float32),
        }
        order = np.concatenate([np.arange(count), repeated])
        source, target = source[order], target[order]
        values = {name: values[name][order] for name in attributes}
        if symmetric:
            source, target = np.concatenate([source, target]), np.concatenate([target, source])
            values = {name: np.concatenate([v, v]) for name, v in values.items()}
        order = np.argsort(target, kind="stable")
        self.source, self.target = source[order], target[order]
        self.values = {name: v[order] for name, v in values.items()}
        dense = rng.random((num_nodes, 3)).astype(np.float32)
        dense[rng.random(dense.shape) < 0.5] = 0
        self.features = dense
        self.type = rng.integers(0, 3, num_nodes).astype(np.int32)
        self.split = rng.integers(0, 4, (num_nodes, 2)).astype(np.int8)
        self.labels = rng.integers(-1, 4, num_nodes)

    def slab(self, low, high):
        a, b = np.searchsorted(self.target, (low, high))
        counts = np.bincount(self.target[a:b] - low, minlength=high - low)
        values = {name: v[a:b] for name, v in self.values.items()}
        return GraphSlab(
            low,
            high,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            self.source[a:b],
            weight=values.get("weight"),
            relation=values.get("relation"),
            edge_features=values.get("features"),
        )

    def nodes(self, low, high, sparse):
        rows = slice(low, high)
        features = self.features[rows]
        if sparse:
            at, column = np.nonzero(features)
            counts = np.bincount(at, minlength=high - low)
            features = CsrRows(
                np.concatenate([[0], np.cumsum(counts)]), column, features[at, column], 3
            )
        kinds = self.type[rows]
        return NodeData(
            features=features,
            labels=self.labels[rows],
            split=self.split[rows],
            type=kinds,
            typed_features={t: np.flatnonzero(kinds == t)[:, None] + low for t in set(kinds)},
            original_ids=1000 + np.arange(low, high),
        )

    def edges(self, reverse=False):
        ends = (self.target, self.source) if reverse else (self.source, self.target)
        return sorted(zip(*ends, *(map(_plain, v) for v in self.values.values()), strict=True))


def _plain(value):
    return tuple(value.tolist()) if np.ndim(value) else float(value)


def _build(comm, graph, num_parts, owner, *, empty=None, sparse=False):
    """Build the layout from slabs of uneven size; the slab of rank `empty` has no rows."""
    shares = np.array([0 if r == empty else r + 1 for r in range(comm.size)], float)
    if shares.sum() == 0:
        shares[:] = 1
    cuts = np.concatenate([[0], np.cumsum(shares) / shares.sum() * graph.n]).astype(int)
    low, high = cuts[comm.rank], cuts[comm.rank + 1]
    return assembly.build(
        comm,
        HeldSource(graph.slab(low, high), graph.nodes(low, high, sparse)),
        owner[low:high],
        num_parts,
        graph.n,
    )


def _everywhere(comm, parts):
    """Return all parts on all ranks, by index."""
    return sorted((p for ps in comm.allgather(parts) for p in ps), key=lambda p: p.index)


def _halo_ids(parts, side, r, s):
    """Return the global ids of the rows that part r receives from part s, by s's send list."""
    lists = getattr(parts[s], side)
    return parts[s].ids[lists.send_rows[lists.send_ptr[r] : lists.send_ptr[r + 1]]]


def _edges_of(parts, side, names):
    """Return global (column, row, attributes ...) of every edge of one side; check the order."""
    found = []
    for part in parts:
        lists = getattr(part, side)
        for s in range(len(parts)):
            rows = slice(lists.row_ptr[s], lists.row_ptr[s + 1])
            edges = slice(lists.edge_ptr[s], lists.edge_ptr[s + 1])
            assert (np.diff(lists.rows[rows]) > 0).all()
            assert (lists.counts[rows] > 0).all()
            row = np.repeat(lists.rows[rows], lists.counts[rows])
            column = lists.columns[edges]
            if s == part.index:
                source = part.ids
                assert lists.recv_ptr[s] == lists.recv_ptr[s + 1]
                assert lists.send_ptr[s] == lists.send_ptr[s + 1]
            else:
                source = _halo_ids(parts, side, part.index, s)
                assert len(source) == lists.recv_ptr[s + 1] - lists.recv_ptr[s]
                assert set(column) == set(range(len(source)))
            values = [map(_plain, getattr(lists, name)[edges]) for name in names]
            in_file = list(zip(row, column, *values, strict=True))
            assert in_file == sorted(in_file)
            found += [(source[c], part.ids[r], *rest) for r, c, *rest in in_file]
        assert lists.columns.dtype == lists.rows.dtype == lists.counts.dtype == np.int32
        for p in range(len(parts)):
            assert (np.diff(lists.send_rows[lists.send_ptr[p] : lists.send_ptr[p + 1]]) > 0).all()
    return sorted(found)


def _check(graph, parts, num_parts, owner, numbers):
    names = list(graph.values)
    assert [part.index for part in parts] == list(range(num_parts))
    for part in parts:
        assert np.array_equal(np.sort(part.ids), np.flatnonzero(owner == part.index))
    assert _edges_of(parts, "in_edges", names) == graph.edges()
    assert numbers.symmetric == (graph.edges() == graph.edges(reverse=True))
    for part in parts:
        assert (part.out_edges is None) == numbers.symmetric
    if not numbers.symmetric:
        assert _edges_of(parts, "out_edges", names) == graph.edges(reverse=True)

    remote = owner[graph.source] != owner[graph.target]
    pairs = {(s, owner[t]) for s, t in zip(graph.source[remote], graph.target[remote], strict=True)}
    for p in range(num_parts):
        assert numbers.nodes[p] == (owner == p).sum()
        assert numbers.edges[p] == (owner[graph.target] == p).sum()
        assert numbers.cut[p] == (owner[graph.target[remote]] == p).sum()
        assert numbers.halo[p] == sum(reader == p for _, reader in pairs)
        assert numbers.sent[p] == sum(owner[s] == p for s, _ in pairs)
        assert numbers.train[p] == (graph.split[owner == p, 0] == 1).sum()


def _check_nodes(graph, part):
    ids, nodes = part.ids, part.nodes
    features = nodes.features
    if isinstance(features, CsrRows):
        dense = np.zeros((len(ids), features.width), np.float32)
        at = np.repeat(np.arange(len(ids)), np.diff(features.indptr))
        dense[at, features.indices] = features.data
        features = dense
    assert np.array_equal(features, graph.features[ids])
    assert np.array_equal(nodes.labels, graph.labels[ids])
    assert np.array_equal(nodes.split, graph.split[ids])
    assert np.array_equal(nodes.type, graph.type[ids])
    assert np.array_equal(part.original_ids, 1000 + ids)
    for kind, rows in nodes.typed_features.items():
        assert np.array_equal(rows[:, 0], ids[graph.type[ids] == kind])
    assert sum(map(len, nodes.typed_features.values())) == len(ids)


ATTRIBUTES = [(), ("weight",), ("relation", "weight", "features")]  # in the order of ties
CASES = [  # every pair of two
    (num_parts, attributes, (i + j) % 2 == 1)
    for i, num_parts in enumerate((1, 3, 5))
    for j, attributes in enumerate(ATTRIBUTES)
]


@pytest.mark.mpi
@pytest.mark.parametrize(("num_parts", "attributes", "symmetric"), CASES)
def test_parts_hold_the_whole_graph(comm, monkeypatch, num_parts, attributes, symmetric):
    """Read and exchanged in one window, then in several."""
    for n in (2, 7, 9, 60):
        if n == 9:
            for module, name, value in (
                (routing, "ROWS", 30),
                (blocks, "ROWS", 30),
                (assembly, "EDGES", 60),
                (columns, "EDGES", 60),
                (columns, "_WINDOW_BYTES", 800),
            ):
                monkeypatch.setattr(module, name, value)
        graph = Graph(n, 3, symmetric=symmetric, attributes=attributes, seed=n)
        owner = np.random.default_rng(n).integers(0, num_parts, n)
        if n == 9:
            owner[:] = num_parts - 1  # the other parts are empty
        mine, numbers = _build(comm, graph, num_parts, owner, empty=n % 3, sparse=n % 2 == 1)
        assert [part.index for part in mine] == list(range(comm.rank, num_parts, comm.size))
        for part in mine:
            _check_nodes(graph, part)
        _check(graph, _everywhere(comm, mine), num_parts, owner, numbers)


@pytest.mark.mpi
def test_no_nodes_and_no_edges(comm):
    graph = Graph(0, 0)
    parts, numbers = _build(comm, graph, 2, np.empty(0, int))
    assert all(len(part.ids) == 0 for part in parts)
    assert numbers.edges.sum() == 0
    graph = Graph(5, 0)
    parts, numbers = _build(comm, graph, 3, np.arange(5) % 3)
    _check(graph, _everywhere(comm, parts), 3, np.arange(5) % 3, numbers)


@pytest.mark.mpi
def test_same_parts_from_any_slabs(comm):
    """The content of a part does not depend on which rank read which rows."""
    graph = Graph(50, 4, attributes=ATTRIBUTES[-1], seed=3)
    owner = np.random.default_rng(1).integers(0, 3, graph.n)
    first = _everywhere(comm, _build(comm, graph, 3, owner)[0])
    second = _everywhere(comm, _build(comm, graph, 3, owner, empty=0)[0])
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.ids, b.ids)
        for side in ("in_edges", "out_edges"):
            for name, value in vars(getattr(a, side)).items():
                assert np.array_equal(value, getattr(getattr(b, side), name)), (side, name)


@pytest.mark.mpi
@pytest.mark.parametrize("change", ["weight", "relation", "features", "direction"])
def test_one_edge_makes_a_graph_asymmetric(comm, change):
    graph = Graph(30, 3, symmetric=True, attributes=ATTRIBUTES[-1], seed=5)
    graph.values["weight"][graph.source == graph.target] = 0
    owner = np.arange(30) % 2
    assert _build(comm, graph, 2, owner)[1].symmetric
    edge = int(np.flatnonzero(graph.source != graph.target)[0])
    if change == "direction":
        graph.source[edge] = graph.target[edge]
    else:
        graph.values[change][edge] += 1
    assert not _build(comm, graph, 2, owner)[1].symmetric


@pytest.mark.mpi
def test_wrong_input_is_refused_on_all_ranks(comm):
    graph = Graph(9, 2, attributes=("weight",))
    owner = np.arange(9) % 2
    owner[8] = 7
    with pytest.raises(InputError, match=r"owner outside 0 \.\. 1 \(found 7\)"):
        _build(comm, graph, 2, owner)
    with pytest.raises(InputError, match="8 of 9"):
        nodes, slab = NodeData(), graph.slab(0, 8) if comm.rank == 0 else graph.slab(8, 8)
        assembly.build(comm, HeldSource(slab, nodes), owner[: slab.hi - slab.lo], 2, 9)
    with pytest.raises(InputError, match="labels has 3 rows for 9"):
        low, high = (0, 9) if comm.rank == 0 else (9, 9)
        labels = np.zeros(3 if comm.rank == 0 else 0, np.int64)
        source = HeldSource(graph.slab(low, high), NodeData(labels=labels))
        assembly.build(comm, source, owner[low:high], 8, 9)
