"""Layouts that are unambiguous or given by options; ambiguous content is not guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

MATRIX = sp.random_array((6, 6), density=0.3, format="csr", rng=np.random.default_rng(3))
PAIRS = np.array([[0, 1, 2], [1, 2, 3]])


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_scipy_matrices_in_npz(convert, tmp_path, form):
    sp.save_npz(tmp_path / "a.npz", MATRIX.asformat(form))
    graph = convert(tmp_path / "a.npz")
    assert (graph.matrix == MATRIX.toarray().astype(np.float32)).all()
    sp.save_npz(tmp_path / "a.npz", (MATRIX != 0).astype(np.float64).asformat(form))
    graph = convert(tmp_path / "a.npz")
    assert graph.slab.weight is None and (graph.matrix == (MATRIX.toarray() != 0)).all()


def test_other_matrices_are_refused(refused, tmp_path):
    edges = text(tmp_path / "e.txt", "0 1\n1 5\n")
    sp.save_npz(tmp_path / "a.npz", MATRIX.asformat("bsr"))
    assert "format: must be csr, csc or coo" in refused(tmp_path / "a.npz")
    sp.save_npz(tmp_path / "a.npz", MATRIX[:5])
    assert "a graph is a square matrix (found [5, 6])" in refused(tmp_path / "a.npz")
    for form in ("csc", "coo"):
        sp.save_npz(tmp_path / "f.npz", MATRIX.asformat(form))
        said = refused(edges, "--features", str(tmp_path / "f.npz"))
        assert "must be a CSR matrix" in said and f"found '{form}'" in said


def test_two_edges_and_booleans(convert, refused, tmp_path):
    np.save(tmp_path / "e.npy", [[0, 1], [2, 3]])
    assert "could be [2, E] or [E, 2]" in refused(tmp_path / "e.npy")
    assert "could be [2, E]" in refused(save(tmp_path / "e.npz", edges=[[0, 1], [2, 3]]))
    assert convert(save(tmp_path / "i.npz", edge_index=[[0, 1], [2, 3]])).edges == [(0, 2), (1, 3)]
    np.save(tmp_path / "e.npy", np.ones((2, 4), bool))
    assert "integers, not booleans" in refused(tmp_path / "e.npy")
    np.save(tmp_path / "e.npy", np.array([[0, 2**24 + 1, 3], [1, 2, 3]], np.float32))
    assert "integers below 16777216, where float32 is exact" in refused(tmp_path / "e.npy")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_masks_stored_as_numbers(convert, tmp_path, dtype):
    masks = {
        "train_mask": np.array([1, 1, 0, 0, 0], dtype),
        "val": np.array([0, 0, 1, 0, 0], dtype),
        "test_mask": np.array([[0, 0, 0, 1, 1]], dtype),
    }
    graph = convert(save(tmp_path / "g.npz", edge_index=PAIRS, num_nodes=np.array(5), **masks))
    assert graph.nodes.split[:, 0].tolist() == [1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_mask": [0, 1, 2]}, "masks may only hold 0 and 1 (found 2)"),
        ({"train_mask": [0, 1, 1]}, "masks must have shape [5]"),
        ({"train": [[0, 1, 2]]}, "masks may only hold 0 and 1 (found 2)"),
        ({"train": [0, 1, 1]}, "node is listed twice (found 1)"),
        ({"train": np.triu(np.ones((5, 5), bool))}, "could be [splits, nodes] or [nodes, splits]"),
        ({"train": ["a", "b"]}, "must hold numbers"),
        ({"labels": np.eye(5)}, "no row holds more than a single 1: use --labels-as"),
        ({"labels": np.array(3)}, "must have a value or a row for each node"),
        ({"original_ids": [1, 1, 2, 3, 4]}, "is listed twice (found 1)"),
        ({"indptr": [0, 1, 1, 1, 1, 1], "indices": [2]}, "store the edges once"),
        ({"num_relations": np.array(0), "relation": [0, 1, 0]}, "relation must be below 0"),
        ({"num_relations": np.array(2**62), "relation": [0, 1, 0]}, "there are only 3 edges"),
        ({"type": [0] * 5, "typed_features_9": np.zeros((0, 3))}, "a type that no node has"),
    ],
)
def test_ambiguous_arrays_are_refused(refused, tmp_path, arrays, message):
    arrays = {"edge_index": PAIRS, "num_nodes": np.array(5)} | arrays
    assert message in refused(save(tmp_path / "g.npz", **arrays))


def test_options_resolve_ambiguous_labels_and_first_lines(convert, refused, tmp_path):
    one_hot = np.eye(5)[[3, 1, 0, 1, 2], :4]
    path = save(tmp_path / "g.npz", edge_index=PAIRS, labels=one_hot)
    assert convert(path, "--labels-as", "one-hot").nodes.labels.tolist() == [3, 1, 0, 1, 2]
    assert convert(path, "--labels-as", "several").counts.multilabel == 1
    assert "not fit --labels-as classes" in refused(path, "--labels-as", "classes")
    made = ("--split-ratio", "1,1,1")  # several columns of whole numbers too
    whole = save(tmp_path / "w.npz", edge_index=PAIRS, labels=one_hot.astype(np.int64))
    assert "no row holds more than a single 1" in refused(whole, *made)
    split = convert(whole, "--labels-as", "several", *made).nodes.split
    assert np.bincount(split[:, 0]).tolist() in ([0, 1, 2, 2], [0, 2, 1, 2], [0, 2, 2, 1])
    for sizes, columns in (("4 3", ()), ("4 4 3", ("--columns", "1,2"))):
        last = " 1" if columns else ""
        rows = "".join(f"{k} {k + 1}{last}\n" for k in range(3))
        path = text(tmp_path / "g.txt", f"{sizes}\n{rows}")
        assert "line 1: looks like the sizes of the graph" in refused(path, *columns)
        assert convert(path, "--skip-lines", 1, *columns).counts.num_edges == 3
        assert convert(path, "--skip-lines", 0, *columns).counts.num_edges == 4
    both = text(
        tmp_path / "b.txt", "4 3\n" + "".join(f"{k} {k + 1}\n{k + 1} {k}\n" for k in range(3))
    )
    assert "since 6 edges follow" in refused(both)
    path = text(tmp_path / "s.txt", "6 6 5\n0 1\n1 2\n")
    assert "line 2: has 2 columns, but the first line has 3" in refused(path, "--columns", "1,2")


def test_konect_weights_and_times(convert, tmp_path, capfd):
    rows = "1 2 2.5 1700000000\n2 3 0.5 1700000001\n"
    path = text(tmp_path / "out.a", "% asym posweighted\n% 2 3 3\n" + rows)
    np.testing.assert_array_equal(convert(path).slab.weight, [2.5, 0.5])
    assert "column 3 is the weight, the time is left out" in capfd.readouterr().err
    assert convert(path, "--no-weights").slab.weight is None
    path = text(tmp_path / "out.b", "% asym unweighted\n" + rows.replace("2.5", "1"))
    assert convert(path).slab.weight is None


def test_line_ends_quotes_and_konect_headers(convert, refused, tmp_path):
    for ends in (b"\r", b"\r\n", b"\n"):
        path = text(tmp_path / "g.csv", ends.join([b'n,"a",b', b'"x, y","0",1', b"z,1,2"]))
        assert convert(path, "--columns", "a,b").edges == [(0, 1), (1, 2)]
    assert "this one twice (found 'a')" in refused(text(path, "a,a,b\n0,1,2\n"), "--columns", "a,b")
    assert "names a column twice" in refused(text(path, "0,1\n"), "--columns", "1,1")
    path = text(path, '"0,1\n1,2\n"3,4\n')
    assert "line 1: has 1 column:" in refused(path)
    rows = "1 2\n2 3\n"
    konect = ("--format", "edges")
    graph = convert(text(tmp_path / "out.a", "% bip unweighted\n% 2 2 3\n" + rows), *konect)
    assert graph.edges == [(0, 3), (1, 4)] and graph.counts.num_nodes == 5
    graph = convert(text(tmp_path / "out.a", "% sym unweighted\n" + rows), *konect)
    assert graph.named_edges == [(1, 2), (2, 1), (2, 3), (3, 2)]
    for header, message in (
        ("% bip unweighted\n", "only one file with a line"),
        (
            "% bip unweighted\n% 2 2 2\n",
            "line 4: the header says that the ids of this side are 1 .. 2",
        ),
    ):
        assert message in refused(text(tmp_path / "out.a", header + rows), *konect)


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("symmetric", "1 2 1\n2 1 1\n", "line 4: a symmetric matrix stores one side"),
        ("skew-symmetric", "2 1 1\n1 1 1\n", "line 4: a skew-symmetric matrix stores one side"),
    ],
)
def test_symmetric_matrices_that_store_both_sides_are_refused(
    refused, tmp_path, kind, rows, message
):
    head = f"%%MatrixMarket matrix coordinate real {kind}\n3 3 2\n"
    assert message in refused(text(tmp_path / "g.mtx", head + rows))


def test_headers_of_snap_and_network_repository(convert, tmp_path, capfd):
    rows = "0\t1\n1\t2\n"
    head = "# Undirected graph: x\n# Nodes: 3 Edges: {}\n# FromNodeId\tToNodeId\n"
    for announced, said in ((2, False), (5, True)):
        graph = convert(text(tmp_path / "g.txt", head.format(announced) + rows))
        assert graph.edges == [(0, 1), (1, 2)]
        note = "its header announces 5 edges, and 2 follow"
        assert (note in capfd.readouterr().err) == said
    matrix = "%%MatrixMarket matrix coordinate pattern symmetric\n3 3 2\n2 1\n3 2\n"
    graph = convert(text(tmp_path / "soc.edges", matrix))
    assert graph.edges == [(0, 1), (1, 0), (1, 2), (2, 1)]


def test_unused_options_are_refused(refused, tmp_path):
    np.save(tmp_path / "e.npy", PAIRS)
    assert "are for text, not .npy" in refused(tmp_path / "e.npy", "--columns", "2,1")
    path = save(tmp_path / "g.npz", edge_index=PAIRS)
    assert "--columns is for the format" in refused(path, "--columns", "2,1")
    assert "--split-scheme is for the format ogb" in refused(path, "--split-scheme", "time")


def test_ignored_content_is_named(convert, tmp_path, capfd):
    convert(
        save(tmp_path / "g.npz", edge_index=PAIRS + 1, labels=[0, 1, 3, 1, 1], year=[1], train=[0])
    )
    convert(text(tmp_path / "g.graph", "2 1 010\n7 2\n7 1\n"))
    said = capfd.readouterr().err
    for words in (
        "ignored: year",
        "no edge touches a node below 1",
        "no node has class 2 of the 4 classes",
        "1 nodes for training, 0 for validation",
        "sizes and weights of nodes are ignored",
    ):
        assert words in said
