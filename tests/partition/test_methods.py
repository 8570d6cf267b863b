"""Every method on any number of ranks: valid parts, balance, cuts and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgnn.comm import shortage as memory
from hpcgnn.errors import InputError
from hpcgnn.partition.edges import most_neighbours, neighbours
from hpcgnn.partition.layout import assembly
from hpcgnn.partition.layout.sources import HeldSource
from hpcgnn.partition.options import METHODS, PartitionOptions
from hpcgnn.partition.pipeline import assign
from hpcgnn.partition.pyparmetis import builds
from hpcgnn.partition.quality import random_numbers, table, verdict
from hpcgnn.partition.simple import block_parts, random_parts
from hpcgnn.storage.read.nodes import NodeData
from tests.partition.slabs import everywhere, grid_edges, make_problem, random_edges, slab_of


@pytest.fixture
def parmetis(comm):
    try:
        return builds.load(comm)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(params=METHODS[1:])
def method(request):
    if request.param == "kaminpar":
        pytest.importorskip("kaminpar")
    if request.param == "parmetis":
        request.getfixturevalue("parmetis")
    return request.param


@pytest.mark.mpi
def test_every_method_assigns_every_node(comm, method):
    """Fewer nodes than ranks or parts, no edges, all rows on one rank."""
    for n, count, num_parts, all_on in [
        (1, 0, 2, None),
        (2, 5, 5, 1),
        (7, 0, 3, 1),
        (9, 20, 2, None),
        (65, 9, 3, None),
        (120, 360, 5, 1),
    ]:
        edges = random_edges(n, count, seed=n)
        problem = make_problem(comm, edges, n, num_parts, all_on=all_on)
        owner = assign(comm, method, problem)
        assert owner.dtype == np.int32 and len(owner) == problem.edges.hi - problem.edges.lo
        owner = everywhere(comm, owner)
        assert len(owner) == n and 0 <= owner.min() <= owner.max() < num_parts
        if n <= num_parts:
            assert len(set(owner)) == n


@pytest.mark.mpi
def test_grid_is_cut_well_and_evenly(comm, method):
    """Perfect quarters of a 40 x 40 grid cut 80 edges; a random partition about 2340."""
    edges = grid_edges(40, 40)
    problem = make_problem(comm, edges, 1600, 4)
    owner = everywhere(comm, assign(comm, method, problem))
    cost = 10 + np.bincount(edges[1], minlength=1600)
    load = np.bincount(owner, weights=cost, minlength=4)
    assert load.max() * 4 / load.sum() < 1.1
    cut = (owner[edges[0]] != owner[edges[1]]).sum() / 2
    limit = {"parmetis": 130, "kaminpar": 130, "streaming": 300, "block": 120, "random": 2500}
    assert 80 <= cut <= limit[method]
    if method == "random":
        assert cut > 2100


@pytest.mark.mpi
def test_the_same_seed_gives_the_same_parts(comm, method):
    edges = random_edges(120, 600)

    def parts(seed: int) -> np.ndarray:
        options = PartitionOptions(seed, repeatable=True)
        problem = make_problem(comm, edges, 120, 3, options=options)
        return everywhere(comm, assign(comm, method, problem))

    first = parts(4)
    assert np.array_equal(first, parts(4))
    if method in ("random", "kaminpar"):  # ParMETIS multiplies the seed by the rank
        assert not np.array_equal(first, parts(5))


@pytest.mark.mpi
def test_parmetis_runs_on_fewer_ranks_where_all_would_not_fit(comm, parmetis, monkeypatch):
    """More ranks need more memory in total: 110 kB hold this graph on one rank, not on several."""
    edges = grid_edges(20, 20)
    problem = make_problem(comm, edges, 400, 2)
    room = 27_500 * builds.load(comm, narrow=True).index_bytes
    monkeypatch.setattr(memory, "available_memory", lambda: room)
    owner = everywhere(comm, assign(comm, "parmetis", problem))
    assert np.bincount(owner).max() < 220 and (owner[edges[0]] != owner[edges[1]]).sum() < 100
    said = [f"runs on 1 of {comm.size} ranks" in note for note in problem.notes]
    assert said == [True] * (comm.size > 1)


@pytest.mark.mpi
def test_training_nodes_can_be_balanced(comm, parmetis):
    """All training nodes are in one corner: one weight leaves them in one part, two spread them."""
    if not parmetis.can_balance_several:
        pytest.skip("PT-Scotch balances only one weight")
    problem = make_problem(
        comm, grid_edges(30, 30), 900, 2, options=PartitionOptions(balance_train=True)
    )
    corner = np.arange(problem.edges.lo, problem.edges.hi) < 300
    problem = type(problem)(**vars(problem) | {"train": corner})
    owner = everywhere(comm, assign(comm, "parmetis", problem))
    assert abs(np.bincount(owner[:300], minlength=2) - 150).max() <= 30
    assert abs(np.bincount(owner, minlength=2) - 450).max() <= 90


@pytest.mark.mpi
@pytest.mark.parametrize("all_on", [None, 0])
def test_neighbours_are_those_of_the_undirected_graph(comm, all_on):
    n = 40
    source, target = random_edges(n, 150)
    problem = make_problem(comm, (source, target), n, 2, all_on=all_on)
    bounds = np.sort(np.append(np.random.default_rng(5).integers(0, n, comm.size - 1), [0, n]))
    indptr, columns = neighbours(comm, problem.edges, bounds)
    dense = np.zeros((n, n), bool)
    dense[source, target] = dense[target, source] = True
    np.fill_diagonal(dense, False)
    row, column = np.nonzero(dense[bounds[comm.rank] : bounds[comm.rank + 1]])
    assert np.array_equal(np.diff(indptr), np.bincount(row, minlength=len(indptr) - 1))
    assert np.array_equal(columns, column)
    both = 2 * int((source != target).sum())
    assert most_neighbours(comm, problem.edges) == both
    back = np.append(source, target), np.append(target, source)
    order = np.argsort(back[1], kind="stable")
    back = back[0][order], back[1][order]
    assert most_neighbours(comm, make_problem(comm, back, n, 2, all_on=all_on).edges) == both


@pytest.mark.mpi
@pytest.mark.parametrize("num_parts", [1, 3, 8])
def test_computed_random_partition_figures_match_its_layout(comm, num_parts):
    edges = random_edges(60, 200)
    problem = make_problem(comm, edges, 60, num_parts)
    split = problem.train[:, None].astype(np.int8)
    owner = assign(comm, "random", problem)
    slab = slab_of(*edges, problem.edges.lo, problem.edges.hi)
    source = HeldSource(slab, NodeData(split=split))
    _, built = assembly.build(comm, source, owner, num_parts, 60)
    lower = np.arange(problem.edges.lo, problem.edges.hi) * num_parts // 120  # no part is the last
    counted, out_edges = random_numbers(comm, problem, lower)
    assert np.array_equal(out_edges, np.bincount(edges[0] * num_parts // 120, minlength=num_parts))
    for name in ("nodes", "edges", "cut", "halo", "sent", "train"):
        assert np.array_equal(getattr(counted, name), getattr(built, name)), name
    report = {"method": "random", "parts": num_parts, **built.summary()}
    lines = table(report | {"random": counted.summary()}).splitlines()
    share = "100.0%" if num_parts > 1 else "0"
    assert lines[1].split()[-1] == share and lines[1].startswith("edge cut")


@pytest.mark.parametrize(
    ("volume", "most", "said"),
    [
        (950, 250, "95% of a random partition's: this partition saves little; try --method kam"),
        (200, 50, "200 rows, 20% of a random partition's"),
        (200, 120, "the busiest part 2 times its share: --refine volume"),
    ],
)
def test_the_verdict_summarises_the_table(volume, most, said):
    report = {
        "method": "parmetis",
        "parts": 4,
        "communication_volume": volume,
        "communication_volume_max": most,
    }
    random = report | {"communication_volume": 1000}
    assert said in verdict(report | {"random": random})
    assert "try" not in verdict(random | {"method": "random", "random": random})
    assert "nothing is sent" in verdict(report | {"random": report | {"communication_volume": 0}})


def test_random_parts_are_even_and_the_same_for_every_caller():
    for n, num_parts in [(1, 1), (7, 3), (8, 2), (1000, 7)]:
        parts = random_parts(np.arange(n), n, num_parts, seed=3)
        counts = np.bincount(parts, minlength=num_parts)
        assert counts.max() - counts.min() <= 1
        some = np.random.default_rng(n).integers(0, n, 5)
        assert np.array_equal(random_parts(some, n, num_parts, seed=3), parts[some])
    assert not np.array_equal(parts, random_parts(np.arange(n), n, num_parts, seed=4))
    neighbours = (parts[1:] == parts[:-1]).mean()
    assert 0.09 < neighbours < 0.2  # 1/7 expected


def test_block_parts_are_contiguous():
    assert block_parts(np.arange(7), 7, 3).tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert block_parts(np.arange(2), 2, 5).tolist() == [2, 4]
    assert block_parts(np.arange(3), 10**15, 10**6).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"imbalance": 1.0},
        {"imbalance": float("nan")},
        {"node_cost": -1},
        {"seed": -1},
        {"node_cost": 0, "edge_cost": 0},
        {"refine": "all"},
        {"quality": "best"},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError, match="--"):
        PartitionOptions(**wrong)
