"""Node columns in separate files."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp


@pytest.fixture
def save(tmp_path):
    def write(name: str, values: object) -> str:
        if name.endswith(".npz"):
            np.savez(tmp_path / name, **values)
        else:
            np.save(tmp_path / name, np.asarray(values))
        return str(tmp_path / name)

    return write


@pytest.fixture
def edges(tmp_path):
    (tmp_path / "g.txt").write_text("0 1\n1 3\n")
    return tmp_path / "g.txt"


def test_all_node_columns(convert, save, edges):
    graph = convert(
        edges,
        *("--features", save("f.npy", np.eye(5)[:, :3])),
        *("--labels", save("l.npy", [1, 0, -1, 2, 1])),
        *("--split", save("s.npy", [[0, 1], [1, 2], [2, 3], [3, 0], [0, 0]])),
        *("--types", save("t.npy", [1, 0, 1, 1, 0])),
        *("--typed-features", "0=" + save("f0.npy", np.full((2, 1), 4))),
        *("--typed-features", "1=" + save("f1.npy", np.full((3, 2), 5))),
    )
    assert graph.counts.num_nodes == 5 and graph.edges == [(0, 1), (1, 3)]
    assert (graph.nodes.features == np.eye(5)[:, :3]).all()
    assert graph.nodes.labels.tolist() == [1, 0, -1, 2, 1]
    assert graph.nodes.split.tolist() == [[0, 1], [1, 2], [2, 3], [3, 0], [0, 0]]
    assert graph.nodes.type.tolist() == [1, 0, 1, 1, 0]
    assert graph.nodes.typed_features[0].tolist() == [[4], [4]]
    assert graph.nodes.typed_features[1].tolist() == [[5, 5]] * 3


def test_split_by_index_and_sparse_features_for_metis(convert, save, tmp_path):
    (tmp_path / "g.graph").write_text("3 2\n2\n1 3\n2\n")
    matrix = sp.random_array((3, 4), density=0.5, format="csr", rng=np.random.default_rng(0))
    sp.save_npz(tmp_path / "f.npz", matrix)
    graph = convert(
        tmp_path / "g.graph",
        *("--split", save("s.npz", {"train": [2], "val": np.array([True, False, False])})),
        *("--features", str(tmp_path / "f.npz")),
    )
    assert graph.nodes.split.tolist() == [[2], [0], [1]]
    assert (graph.dense_features == matrix.toarray().astype(np.float32)).all()


def test_a_row_lists_each_sparse_column_once(convert, refused, save, edges):
    matrix = {"shape": [4, 3], "format": b"csr", "data": np.ones(4), "indptr": [0, 0, 3, 3, 4]}
    said = refused(edges, "--features", save("f.npz", matrix | {"indices": [2, 0, 2, 2]}))
    assert "f.npz: indices: row 1 lists column 2 twice: call matrix.sum_duplicates()" in said
    graph = convert(edges, "--features", save("f.npz", matrix | {"indices": [2, 0, 1, 1]}))
    assert graph.dense_features.tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]]


def test_ids_name_the_rows(convert, refused, save, tmp_path):
    (tmp_path / "g.txt").write_text("70 50\n50 9\n")
    columns = ("--labels", save("l.npy", [3, 1, 2, 0]))
    ids = save("i.npy", [50, 9, 8, 70])
    graph = convert(tmp_path / "g.txt", *columns, "--ids", ids)
    assert graph.edges == [(0, 1), (3, 0)]
    assert graph.nodes.original_ids.tolist() == [50, 9, 8, 70]
    assert graph.nodes.labels.tolist() == [3, 1, 2, 0]
    for values, message in (
        ([50, 9, 8, 71], "not listed here: add it, or leave the edge out (found 70)"),
        ([0, 1, 2, 3], "not listed here: add it, or leave the edge out (found 50)"),
        ([50, 9, 70, 70], "is listed twice (found 70)"),
        ([50, 9, 70, -1], "ids must not be negative (found -1)"),
        ([50, 9, 70.5, 1], "must hold integers (found 70.5)"),
        ([50, 70, 9], "disagree on the number of nodes"),
    ):
        assert message in refused(tmp_path / "g.txt", *columns, "--ids", save("i.npy", values))


def test_rows_must_hold_the_ids_of_the_edges(refused, save, edges):
    labels = save("l.npy", [0, 1, 1])
    assert "line 2: destination must be below 3 (found 3)" in refused(edges, "--labels", labels)
    assert "describe 3 nodes, not 4" in refused(edges, "--labels", labels, "--num-nodes", 4)


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("--features", np.full((5, 2), np.nan), "row 0, column 0 is not a finite float32"),
        ("--features", np.zeros((5, 2, 2)), "must be numbers of shape [nodes, width]"),
        ("--features", np.float32(3), "must have a value or a row for each node"),
        ("--labels", np.full(5, 1 << 40), "labels (-1: unknown) lie in"),
        ("--split", [0, 1, 2, 3, 4], "codes (none, train, valid, test) lie in 0 .. 3 (found 4)"),
        ("--types", [0, 1, -2, 0, 0], "node types lie in 0"),
    ],
)
def test_bad_columns_are_refused(refused, save, edges, option, values, message):
    assert message in refused(edges, option, save("c.npy", values))


def test_bad_files_are_refused(refused, save, edges, tmp_path):
    assert "nowhere.npy: no such file" in refused(edges, "--features", "nowhere.npy")
    assert "has none of train" in refused(edges, "--split", save("s.npz", {"other": [1]}))
    assert "--typed-features takes T=FILE.npy" in refused(edges, "--typed-features", "x.npy")
    (tmp_path / "t.npy").write_text("0 1 2")
    assert "t.npy: is not a NumPy array file" in refused(edges, "--labels", str(tmp_path / "t.npy"))
