"""OGB's raw folders, and data set names of its package."""

from __future__ import annotations

import gzip
import sys
import types
from pathlib import Path

import numpy as np
import pytest

EDGES = np.array([[0, 1], [4, 1], [1, 2], [2, 2]])
FEATURES = np.arange(10, dtype=np.float32).reshape(5, 2) / 7
LABELS = np.array([[2], [0], [-1], [1], [1]])


def write(path: Path, rows: np.ndarray) -> None:
    text = "".join(",".join(map(str, row)) + "\n" for row in np.atleast_2d(rows.T).T.tolist())
    path.write_bytes(gzip.compress(text.replace("-1", "nan").encode()))


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "ogbn_tiny"
    (root / "raw").mkdir(parents=True)
    (root / "split" / "time").mkdir(parents=True)
    write(root / "raw" / "edge.csv.gz", EDGES)
    write(root / "raw" / "node-feat.csv.gz", FEATURES)
    write(root / "raw" / "node-label.csv.gz", LABELS)
    write(root / "raw" / "num-node-list.csv.gz", np.array([5]))
    write(root / "raw" / "num-edge-list.csv.gz", np.array([4]))
    write(root / "raw" / "node_year.csv.gz", np.array([2000] * 5))
    for name, members in (("train", [0, 2]), ("valid", [3]), ("test", [1])):
        write(root / "split" / "time" / f"{name}.csv.gz", np.array(members))
    return root


def check(graph) -> None:
    assert graph.edges == sorted(map(tuple, EDGES.tolist()))
    np.testing.assert_allclose(graph.nodes.features, FEATURES, rtol=1e-6)
    assert graph.nodes.labels.tolist() == LABELS[:, 0].tolist()
    assert graph.nodes.split[:, 0].tolist() == [1, 3, 1, 2, 0]


def test_ogb_text_folders(convert, folder):
    check(convert(folder))


def test_edge_features_and_several_labels(convert, folder):
    write(folder / "raw" / "edge-feat.csv.gz", np.array([[1.5, 2], [3, 4], [5, 6], [7, 8.25]]))
    write(folder / "raw" / "node-label.csv.gz", np.array([[0, 1, 1]] * 5))
    (folder / "raw" / "node-feat.csv.gz").unlink()
    graph = convert(folder)
    assert graph.slab.edge_features.tolist() == [[1.5, 2], [3, 4], [5, 6], [7, 8.25]]
    assert graph.nodes.features is None and graph.counts.multilabel == 1
    assert graph.nodes.labels.tolist() == [[0, 1, 1]] * 5


def test_ogb_binary_folders(convert, folder):
    for path in (folder / "raw").iterdir():
        path.unlink()
    labels = np.where(LABELS < 0, np.nan, LABELS)
    np.savez(
        folder / "raw" / "data.npz",
        edge_index=EDGES.T,
        node_feat=FEATURES,
        num_nodes_list=np.array([5]),
        num_edges_list=np.array([4]),
    )
    np.savez(folder / "raw" / "node-label.npz", node_label=labels)
    check(convert(folder))


def test_ogb_data_sets_by_name(convert, refused, folder, tmp_path, monkeypatch):
    name = tmp_path / "ogbn-tiny"
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", None)
    assert "pip install ogb" in refused(name)

    class Dataset:
        def __init__(self, name: str, root: str) -> None:
            if name != "ogbn-tiny":
                raise ValueError(f"Invalid dataset name {name}")
            self.root = f"{root}/ogbn_tiny"
            self.meta_info = {"add_inverse_edge": "True"}

    module = types.ModuleType("ogb.nodeproppred")
    module.NodePropPredDataset = Dataset
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", module)
    graph = convert(name, "--ogb-root", str(tmp_path))
    pairs = {tuple(pair) for pair in EDGES.tolist()}
    assert graph.edges == sorted(pairs | {(b, a) for a, b in pairs})
    assert "Invalid dataset name" in refused(tmp_path / "ogbn-nothing")


def test_split_schemes(convert, refused, folder):
    (folder / "split" / "random").mkdir()
    assert "choose one with --split-scheme: random, time" in refused(folder)
    check(convert(folder, "--split-scheme", "time"))
    assert "random/train.csv.gz: no such file" in refused(folder, "--split-scheme", "random")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("raw/edge.csv.gz", "0,1\n1,5\n", "edge 1: destination must be below 5 (found 5)"),
        ("raw/edge.csv.gz", "0,1\n1;2\n", "line 2: has 1 columns, not 2"),
        ("raw/edge.csv.gz", "0,1\n", "num-edge-list says 4 edges (found 1)"),
        ("raw/edge-feat.csv.gz", "0,1\n", "same number of edges"),
        ("raw/node-feat.csv.gz", "0,1\n" * 4 + "1,nan\n", "row 4, column 1 is not a finite"),
        ("raw/node-feat.csv.gz", "0,1\n" * 4, "fewer rows than there are nodes (5)"),
        ("raw/node-feat.csv.gz", "0,1\n0\n", "line 2: has 1 columns, not 2"),
        ("raw/node-label.csv.gz", "0\n" * 6, "more rows than there are nodes (5)"),
        ("raw/node-label.csv.gz", "0\n1\n2\n-3\n0\n", "labels (-1: unknown) lie in"),
        ("raw/num-node-list.csv.gz", "5\n7\n", "must hold one number"),
        ("raw/num-node-list.csv.gz", "-5\n", "must hold one number"),
        ("raw/num-node-list.csv.gz", "x\n", "line 1: is not an integer"),
        ("split/time/train.csv.gz", "0\n9\n", "train: node indices lie in 0 .. 4 (found 9)"),
        ("raw/triplet-type-list.csv.gz", "a\n", "num-node-dict.csv.gz: no such file"),
        pytest.param(
            "raw/node-feat.csv.gz",
            "1" + ",1" * 65536 + "\n",
            "line 1: has more than 65536 columns",
            id="wide",
        ),
    ],
)
def test_bad_files_are_refused(refused, folder, name, text, message):
    (folder / name).write_bytes(gzip.compress(text.encode()))
    assert message in refused(folder)


def test_missing_and_truncated_files_are_refused(refused, folder):
    whole = (folder / "raw" / "edge.csv.gz").read_bytes()
    (folder / "raw" / "edge.csv.gz").write_bytes(whole[:-6])
    assert "edge.csv.gz: is truncated or damaged" in refused(folder)
    (folder / "raw" / "edge.csv.gz").unlink()
    assert "edge.csv.gz: no such file" in refused(folder)
    assert "has no folder raw/" in refused(folder / "raw", "--format", "ogb")


def test_ignored_files_are_named(convert, refused, folder, capfd):
    convert(folder)
    assert "node_year.csv.gz" in capfd.readouterr().err
    arrays = {"edge_index": EDGES.T, "num_nodes_list": np.array([5])}
    np.savez(folder / "raw" / "data.npz", **arrays, node_species=np.zeros(5))
    convert(folder)
    said = capfd.readouterr().err
    assert "ignored: node_species" in said and "edge.csv.gz, node-feat.csv.gz" in said
    np.savez(folder / "raw" / "data.npz", **arrays, num_edges_list=np.array([3]))
    assert "num-edge-list says 3 edges (found 4)" in refused(folder)
