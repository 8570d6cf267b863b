"""Generated graphs have the requested structure, for any slabs and any number of ranks."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import HpcgnnError, InputError, OutputError
from hpcgnn.storage.generate import output
from hpcgnn.storage.generate.output import FeatureColumns, split, write_generated
from hpcgnn.storage.generate.rmat import RMat
from hpcgnn.storage.generate.sbm import PlantedPartition
from hpcgnn.storage.read.graph_file import GraphFile


def adjacency(graph) -> csr_matrix:
    """Return the matrix of all slabs; entry (i, j) counts the edges j -> i."""
    counts, indices = zip(*(graph.rows(s) for s in range(graph.num_slabs)), strict=True)
    ends = [graph.slab(s) for s in range(graph.num_slabs)]
    assert ends[0][0] == 0 and ends[-1][1] == graph.num_nodes
    assert all(a[1] == b[0] for a, b in pairwise(ends))
    assert [len(c) for c in counts] == [hi - lo for lo, hi in ends]
    row_of = np.repeat(np.arange(graph.num_nodes), np.concatenate(counts))
    index = np.concatenate(indices)
    shape = (graph.num_nodes, graph.num_nodes)
    return csr_matrix((np.ones(len(index)), (row_of, index)), shape)


def simple(matrix: csr_matrix) -> None:
    """Check that the graph is undirected, without loops and parallel edges."""
    assert (matrix != matrix.T).nnz == 0
    assert matrix.diagonal().sum() == 0
    assert matrix.nnz == 0 or matrix.data.max() == 1


@pytest.mark.parametrize(
    ("nodes", "degree", "classes", "homophily"),
    [
        (1, 0, 1, 0.5),
        (7, 2, 1, 0.5),
        (8, 2, 2, 0.5),
        (9, 2, 3, 0),
        (500, 20, 7, 0.55),
        (501, 9, 4, 1),
    ],
)
@pytest.mark.parametrize("slab_edges", [7, 2000, 1 << 22])
def test_planted_partition(comm, nodes, degree, classes, homophily, slab_edges):
    graph = PlantedPartition(
        comm,
        nodes,
        degree,
        classes,
        5,
        homophily=homophily,
        slab_edges=slab_edges if nodes <= 9 else max(slab_edges, 2000),
    )
    matrix = adjacency(graph)
    simple(matrix)
    if nodes > 9:
        wanted = round(nodes * degree / 2)
        assert matrix.sum() == 2 * wanted
        labels = graph.labels(0, nodes)
        rows, found = matrix.nonzero()
        assert (labels[rows] == labels[found]).sum() == 2 * round(wanted * homophily)
        assert np.bincount(labels, minlength=classes).min() > nodes / classes / 2
    assert (adjacency(graph) != matrix).nnz == 0


def test_degrees_follow_the_power_law(comm):
    tails = {}
    for exponent in (2.2, 3.0, 6.0):
        graph = PlantedPartition(comm, 20_000, 20, 2, 1, exponent=exponent)
        degrees = graph.rows(0)[0]
        expected = (exponent - 2) / (exponent - 1) * 20  # least expected degree
        top = degrees[degrees > 3 * expected]
        tails[exponent] = 1 + 1 / np.log(top / (3 * expected)).mean()  # Hill's estimate
        assert degrees.sum() == 400_000
    assert tails[2.2] == pytest.approx(2.2, abs=0.25)
    assert tails[3.0] == pytest.approx(3.0, abs=0.3)
    assert tails[6.0] > 4


def test_seeds_differ_and_repeat(comm):
    graphs = [PlantedPartition(comm, 300, 10, 3, seed) for seed in (0, 1, 0)]
    matrices = [adjacency(graph) for graph in graphs]
    assert (matrices[0] != matrices[2]).nnz == 0
    assert (matrices[0] != matrices[1]).nnz > 1000
    rmat = [adjacency(RMat(300, 10, 3, seed)) for seed in (0, 1, 0)]
    assert (rmat[0] != rmat[2]).nnz == 0
    assert (rmat[0] != rmat[1]).nnz > 1000


@pytest.mark.parametrize(
    ("nodes", "slab_edges"),
    [*product([1, 2, 7, 8, 9], [1, 20, 1000]), *product([500, 1000], [1000, 1 << 22])],
)
def test_rmat_graphs_have_the_requested_size(nodes, slab_edges):
    degree = 0 if nodes < 3 else 2 if nodes < 10 else 16
    graph = RMat(nodes, degree, 2, 3, slab_edges=slab_edges)
    matrix = adjacency(graph)
    simple(matrix)
    wanted = nodes * degree
    assert abs(matrix.sum() - wanted) <= 5 * np.sqrt(wanted)
    if slab_edges == 1000 and nodes >= 500:
        assert graph.num_slabs > 10


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "slab_edges"), [(6, 1), (8, 1000)])
def test_rmat_edges_follow_the_probabilities(nodes, slab_edges):
    """Edges appear as often as the Kronecker power of the quadrants predicts."""
    quadrants = np.array([[0.57, 0.19], [0.19, 0.05]])
    cells = np.kron(np.kron(quadrants, quadrants), quadrants)[:nodes, :nodes]
    pairs = np.triu(cells + cells.T, 1)
    draws = np.linspace(0, 200, 400_001)
    found = sum(1 - np.exp(-draws * p) for p in pairs[pairs > 0])
    expected = 1 - np.exp(-draws[np.searchsorted(found, nodes * 1.5 / 2)] * pairs)
    trials = 400
    seen = sum(
        np.triu(adjacency(RMat(nodes, 1.5, 1, seed, slab_edges=slab_edges)).toarray())
        for seed in range(trials)
    )
    error = np.abs(seen / trials - expected)
    assert error.max() < 5 * 0.5 / np.sqrt(trials)
    assert error.mean() < 0.02


def test_room_for_edges_is_checked(comm):
    with pytest.raises(InputError, match=r"room for .* edges within classes"):
        PlantedPartition(comm, 100, 60, 10, 0)
    with pytest.raises(InputError, match=r"room for 0 edges between classes|within classes"):
        PlantedPartition(comm, 10, 8, 2, 0, homophily=0.5)
    with pytest.raises(InputError, match="10 nodes have 45 pairs, and the 30 edges asked for"):
        RMat(10, 6, 2, 0)


def test_features_and_neighbours_carry_the_class(comm):
    nodes, classes = 4000, 10
    graph = PlantedPartition(comm, nodes, 30, classes, 0)
    labels = graph.labels(0, nodes)
    made = FeatureColumns(nodes, 64, classes, 0, noise=3.0)
    features = made.features(0, labels)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(classes)])
    residual = features - means[labels]
    assert residual.std() == pytest.approx(3, rel=0.02)
    # Class means are known here, so this is the most that features alone can achieve
    truth = FeatureColumns(classes, 64, classes, 0, noise=0.0).features(0, np.arange(classes))
    alone = np.argmax(features @ truth.T - (truth**2).sum(axis=1) / 2, axis=1) == labels
    matrix = adjacency(graph)
    around = matrix @ (matrix @ features)
    around -= around.mean(axis=0)
    together = np.argmax(around @ (truth - truth.mean(axis=0)).T, axis=1) == labels
    assert 0.12 < alone.mean() < 0.3
    assert together.mean() > 2.5 * alone.mean()


def test_shares_of_the_split_and_uniform_numbers():
    chosen = split(3, 0, 100_000, (60, 20, 20))
    assert np.bincount(chosen, minlength=4) / 1000 == pytest.approx([0, 60, 20, 20], abs=0.7)
    assert (
        np.concatenate([split(3, 0, 77, (6, 2, 2)), split(3, 77, 500, (6, 2, 2))]) == chosen[:500]
    ).all()
    assert set(split(0, 0, 100, (1, 0, 0))) == {1}


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["sbm", "rmat"])
def test_the_file_is_the_same_on_any_number_of_ranks(comm, shared_path, monkeypatch, kind):
    monkeypatch.setattr(output, "_SLAB_VALUES", 500)
    alone = Communicator(comm.mpi.Split(comm.rank, 0))

    def write(group: Communicator, name: str) -> None:
        if kind == "sbm":
            graph = PlantedPartition(group, 700, 10, 5, 1, slab_edges=600)
        else:
            graph = RMat(700, 10, 5, 1, slab_edges=600)
        assert graph.num_slabs > 8
        write_generated(
            shared_path / name,
            group,
            graph,
            num_features=6,
            seed=1,
            noise=1.0,
            shares=(60, 20, 20),
            compress=False,
            config={"kind": kind},
        )

    write(comm, "all.h5")
    if comm.rank == 0:
        write(alone, "one.h5")
        assert (shared_path / "all.h5").read_bytes() == (shared_path / "one.h5").read_bytes()
        with GraphFile(shared_path / "all.h5") as graph:
            graph.verify()
            assert (graph.num_nodes, graph.num_features, graph.num_classes) == (700, 6, 5)
    comm.barrier()


def write_small(folder: Path, comm: Communicator, graph: RMat) -> None:
    write_generated(
        folder / "g.h5",
        comm,
        graph,
        num_features=1,
        seed=0,
        noise=1.0,
        shares=(1, 1, 1),
        compress=False,
        config={},
    )


@pytest.mark.mpi
def test_an_error_on_the_last_rank_is_raised_on_all_ranks(comm, shared_path, monkeypatch):
    graph = RMat(100, 5, 2, 0, slab_edges=20)
    if comm.rank == comm.size - 1:
        monkeypatch.setattr(graph, "rows", lambda index: 1 // 0)
    with pytest.raises((HpcgnnError, ZeroDivisionError), match="division"):
        write_small(shared_path, comm, graph)
    comm.barrier()
    assert list(shared_path.iterdir()) == []


@pytest.mark.mpi
@pytest.mark.parametrize("when", ["opened", "written", "closed"])
def test_an_error_of_the_writing_rank_is_raised_on_all_ranks(comm, shared_path, monkeypatch, when):
    """A folder missing on rank 0, or a full disk: no rank waits for data that will not come."""
    monkeypatch.setattr(output, "_SLAB_VALUES", 20)
    folder = shared_path if when != "opened" else shared_path / "missing" / str(comm.rank)
    if comm.rank == 0 and when != "opened":

        def fails(*given):
            raise OutputError("no space left")

        name = {"written": "append_features", "closed": "_finish"}[when]
        monkeypatch.setattr(output.GraphWriter, name, fails)
    with pytest.raises(OutputError, match=r"no space|missing"):
        write_small(folder, comm, RMat(100, 5, 2, 0, slab_edges=20))
    comm.barrier()
