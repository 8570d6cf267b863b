"""Treatment of edges and features on conversion, compared with SciPy and networkx."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp

from hpcgnn.storage.importers import assemble, row_lists, spool


@pytest.fixture(params=["whole", "in chunks"])
def chunks(request, monkeypatch):
    """Run once as usual, once with the smallest possible pieces."""
    if request.param == "in chunks":
        monkeypatch.setattr(row_lists, "_ROWS", 3)
        monkeypatch.setattr(assemble, "Scratch", lambda out, _: spool.Scratch(out, 4096))


def random_edges(number: int = 300, nodes: int = 23) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(number)
    return [tuple(row) for row in rng.integers(0, (nodes, nodes, 9), (number, 3)).tolist()]


def write(path: Path, edges: list[tuple[int, int, int]]) -> Path:
    path.write_text("".join(f"{a} {b} {w + 1}\n" for a, b, w in edges))
    return path


def options(*more: object) -> tuple[object, ...]:
    return ("--columns", "1,2,3", "--num-nodes", 25, *more)


def maximum(edges: list[tuple[int, int, int]]) -> np.ndarray:
    out = np.zeros((25, 25))
    for a, b, w in edges:
        out[a, b] = max(out[a, b], w + 1)
    return out


def total(edges: list[tuple[int, int, int]]) -> np.ndarray:
    a, b, w = np.array(edges).T
    return sp.coo_array((w + 1.0, (a, b)), (25, 25)).toarray()


def test_edges_are_kept_by_default(convert, tmp_path, chunks):
    edges = random_edges()
    graph = convert(write(tmp_path / "g.txt", edges), *options())
    found = zip(graph.slab.indices, graph.destinations, graph.slab.weight - 1, strict=True)
    assert sorted(tuple(map(int, edge)) for edge in found) == sorted(edges)


@pytest.mark.parametrize(("rule", "reduce"), [("max", maximum), ("sum", total)])
def test_deduplicate(convert, tmp_path, chunks, rule, reduce):
    edges = random_edges()
    graph = convert(
        write(tmp_path / "g.txt", edges), *options("--deduplicate", "--duplicate-weights", rule)
    )
    assert graph.counts.num_edges == len({(a, b) for a, b, _ in edges})
    assert (graph.matrix == reduce(edges)).all()


def test_symmetrise_by_maximum(convert, tmp_path, chunks):
    edges = random_edges()
    graph = convert(write(tmp_path / "g.txt", edges), *options("--symmetrise"))
    truth = np.maximum(maximum(edges), maximum(edges).T)
    assert (graph.matrix == truth).all() and graph.counts.num_edges == np.count_nonzero(truth)


def test_symmetrise_by_sum(convert, tmp_path, chunks):
    edges = random_edges()
    graph = convert(
        write(tmp_path / "g.txt", edges), *options("--undirected", "--duplicate-weights", "sum")
    )
    truth = total(edges) + total(edges).T * (1 - np.eye(25))
    assert (graph.matrix == truth).all()


def test_symmetrise_as_networkx_does(convert, tmp_path, chunks, capfd):
    truth = nx.DiGraph([(a, b) for a, b, _ in random_edges()]).to_undirected().to_directed()
    path = write(tmp_path / "g.txt", random_edges())
    graph = convert(path, "--columns", "1,2", "--symmetrise")
    assert "listed more than once, or both ways, are merged" in capfd.readouterr().err
    assert graph.edges == sorted(truth.edges)
    again = convert(path, "--columns", "1,2", "--symmetrise", "--self-loops", "remove")
    truth.remove_edges_from(list(nx.selfloop_edges(truth)))
    assert again.edges == sorted(truth.edges)


@pytest.mark.parametrize("symmetrise", [(), ("--symmetrise",)])
def test_self_loops(convert, tmp_path, chunks, symmetrise):
    edges = [edge for edge in random_edges(60) if edge[0] % 4 or edge[0] != edge[1]]
    edges += [(3, 3, 5), (3, 3, 6)]
    path = write(tmp_path / "g.txt", edges)
    kept = convert(path, *options(*symmetrise)).matrix
    removed = convert(path, *options("--self-loops", "remove", *symmetrise))
    assert (removed.matrix == kept * (1 - np.eye(25))).all()
    added = convert(path, *options("--self-loops", "add", *symmetrise))
    assert (added.matrix == kept + np.diag(kept.diagonal() == 0)).all()
    for graph in (removed, added):
        for first, last in zip(graph.slab.indptr[:-1], graph.slab.indptr[1:], strict=True):
            assert (np.diff(graph.slab.indices[first:last]) >= 0).all()


def test_weights_too_large_to_add(refused, tmp_path):
    (tmp_path / "g.txt").write_text("0 1 3e38\n0 1 3e38\n")
    assert "not finite" in refused(
        tmp_path / "g.txt", "--columns=1,2,3", "--deduplicate", "--duplicate-weights=sum"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8])
def test_row_normalised_features(convert, tmp_path, dtype):
    rng = np.random.default_rng(0)
    features = rng.integers(-5, 6, (25, 4)).astype(dtype)
    features[7] = 0
    np.save(tmp_path / "f.npy", features)
    sp.save_npz(tmp_path / "s.npz", sp.csr_array(features.astype(np.float32)))
    path = write(tmp_path / "g.txt", random_edges())
    total = np.abs(features.astype(np.float64)).sum(1, keepdims=True)
    truth = features / np.where(total == 0, 1, total)
    for name in ("f.npy", "s.npz"):
        plain = convert(path, *options("--features", tmp_path.joinpath(name).as_posix()))
        assert (plain.dense_features == features).all()
        found = convert(
            path, *options("--features", str(tmp_path / name), "--row-normalise")
        ).dense_features
        half = dtype == np.float16 and name == "f.npy"
        assert found.dtype == (np.float16 if half else np.float32)
        np.testing.assert_allclose(found, truth, rtol=2e-3 if half else 1e-6)


def test_ids_that_outgrow_32_bits_during_reading(convert, tmp_path):
    """The ends of the last edge do not fit into the records of those before."""
    rng = np.random.default_rng(6)
    ends = rng.integers(0, 40, (2, 200_000))
    ends[:, -1] = 1 << 31, (1 << 40) + 3
    np.save(tmp_path / "edges.npy", ends)
    graph = convert(tmp_path / "edges.npy")
    ids = np.append(np.arange(40), ends[:, -1])
    assert graph.nodes.original_ids.tolist() == ids.tolist()
    found = np.stack([ids[graph.slab.indices], ids[graph.destinations]])
    assert (found == ends[:, np.lexsort(ends)]).all()
