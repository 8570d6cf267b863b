"""Graphs as other programs store them: PyTorch Geometric, GraphSAINT, Shchur, DGL."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hpcgnn.storage.importers import xml_graphs

PAIRS = np.array([[0, 1, 2, 3], [1, 2, 0, 4]])
X = np.arange(10, dtype=np.float32).reshape(5, 2)
Y = np.array([0, 1, 1, 0, 2])
MASKS = {
    "train_mask": np.array([1, 0, 1, 0, 0], bool),
    "val_mask": np.array([0, 1, 0, 0, 0], bool),
    "test_mask": np.array([0, 0, 0, 1, 1], bool),
}


def check(graph) -> None:
    """Check that it is the graph above."""
    assert graph.edges == sorted(map(tuple, PAIRS.T.tolist()))
    np.testing.assert_array_equal(graph.dense_features, X)
    assert graph.nodes.labels.tolist() == Y.tolist()
    assert graph.nodes.split[:, 0].tolist() == [1, 2, 1, 3, 3]


def data(**more):
    geometric = pytest.importorskip("torch_geometric.data")
    tensors = {"x": X, "y": Y, "edge_index": PAIRS} | MASKS
    return geometric.Data(**{name: torch.from_numpy(v) for name, v in tensors.items()}, **more)


def test_arrays_named_as_in_pytorch_geometric(convert, refused, tmp_path, capfd):
    path = tmp_path / "g.npz"
    np.savez(path, x=X, y=Y, edge_index=PAIRS, **MASKS, pos=X)
    check(convert(path))
    assert "ignored: pos" in capfd.readouterr().err
    chosen = {name.replace("mask", "idx"): np.flatnonzero(mask) for name, mask in MASKS.items()}
    np.savez(path, x=X, y=Y, edge_index=PAIRS, **chosen)
    check(convert(path))
    np.savez(path, my_feat=X, y=Y, edge_index=PAIRS)
    assert "my_feat: looks like features of the nodes: call it features" in refused(path)
    np.savez(path, x=X, node_class=Y, edge_index=PAIRS)
    said = refused(path)
    assert "node_class: looks like labels of the nodes: call it labels" in said
    assert convert(path, "--leave-out", "node_class").nodes.labels is None
    few = {"train_mask": MASKS["train_mask"], "validation_mask": MASKS["val_mask"]}
    np.savez(path, x=X, y=Y, edge_index=PAIRS, **few)
    said = refused(path)
    assert "validation_mask: looks like the valid set of the nodes: call it val_mask, or" in said
    convert(path, "--leave-out", "validation_mask")
    np.savez(path, x=X, y=Y, edge_index=PAIRS, testing_nodes=np.arange(2), test_year=Y)
    assert "testing_nodes: looks like the test set of the nodes: call it test_mask" in refused(path)
    np.savez(path, x=X, y=Y, edge_index=PAIRS, **MASKS, test_rows=MASKS["test_mask"])
    convert(path)  # the test set is known
    np.savez(path, x=X, features=X, edge_index=PAIRS)
    assert "holds both features and x, which have the same meaning" in refused(path)
    assert "for --leave-out (found 'z')" in refused(path, "--leave-out", "z")


@pytest.mark.parametrize("stored", ["data", "dictionary", "data set"])
def test_pytorch_geometric_data_files(convert, tmp_path, capfd, stored):
    found = data(name="small", edge_weight=torch.tensor([1.0, 2, 3, 4]))
    what = {"data": found, "dictionary": found.to_dict(), "data set": (found.to_dict(), None)}
    torch.save(what[stored], tmp_path / "g.pt")
    graph = convert(tmp_path / "g.pt")
    check(graph)
    assert graph.weights == {(0, 1): 1, (1, 2): 2, (2, 0): 3, (3, 4): 4}
    assert "ignored: name (str)" in capfd.readouterr().err


@pytest.mark.parametrize("stored", ["data", "dictionary"])
def test_pytorch_geometric_heterodata_files(convert, tmp_path, stored):
    geometric = pytest.importorskip("torch_geometric.data")
    found = geometric.HeteroData()
    found["paper"].x = torch.ones(3, 2)
    found["paper"].y = torch.tensor([1, 0, 1])
    found["paper"].train_mask = torch.tensor([True, True, False])
    found["author"].x = torch.zeros(2, 4)
    found["author", "writes", "paper"].edge_index = torch.tensor([[0, 1, 1], [0, 1, 2]])
    found["paper", "cites", "paper"].edge_index = torch.tensor([[0], [2]])
    torch.save(found if stored == "data" else found.to_dict(), tmp_path / "g.pt")
    graph = convert(tmp_path / "g.pt")
    papers, authors = (0, 3) if graph.nodes.type[0] == graph.nodes.type[2] else (2, 0)
    assert graph.edges == sorted(
        [
            (authors, papers),
            (authors + 1, papers + 1),
            (authors + 1, papers + 2),
            (papers, papers + 2),
        ]
    )
    assert graph.counts.num_relations == 2 and graph.counts.num_types == 2
    assert graph.nodes.labels[papers : papers + 3].tolist() == [1, 0, 1]
    assert (graph.nodes.labels == -1).sum() == 2
    kind = int(graph.nodes.type[papers])
    assert graph.nodes.typed_features[kind].tolist() == [[1, 1]] * 3
    assert graph.nodes.typed_features[1 - kind].shape == (2, 4)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_else_is_unpickled(refused, tmp_path):
    path, evil = tmp_path / "g.pt", tmp_path / "evil"
    torch.save({"x": torch.ones(2, 2), "edge_index": Evil(evil)}, path)
    assert "g.pt: holds objects that are not loaded" in refused(path)
    torch.save(data(extra=Evil(evil)), path)
    assert "holds objects that are not loaded: store data.to_dict()" in refused(path)
    assert not evil.exists()
    whole = path.read_bytes()
    for spoilt in (b"", b"PK", b"hello world\n" * 9, whole[: len(whole) // 2]):
        path.write_bytes(spoilt)
        assert "g.pt: can't be loaded: it is damaged, or not a file of torch.save" in refused(path)
    torch.save([1, 2], path)
    assert "holds a data set of many graphs" in refused(path)
    torch.save(torch.ones(3), path)
    assert "holds no graph" in refused(path)


def matrix() -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(4), tuple(PAIRS)), shape=(5, 5))


def test_graphsaint_folders(convert, refused, tmp_path, capfd):
    folder = tmp_path / "saint"
    folder.mkdir()
    sp.save_npz(folder / "adj_full.npz", matrix())
    sp.save_npz(folder / "adj_train.npz", matrix())
    np.save(folder / "feats.npy", X)
    (folder / "class_map.json").write_text(json.dumps({str(k): int(y) for k, y in enumerate(Y)}))
    (folder / "role.json").write_text(json.dumps({"tr": [0, 2], "va": [1], "te": [3, 4]}))
    check(convert(folder))
    assert "ignored: adj_train.npz" in capfd.readouterr().err
    several = {str(k): [int(k > 2), 1] for k in range(5)}
    (folder / "class_map.json").write_text(json.dumps(several))
    assert convert(folder).nodes.labels.tolist() == list(several.values())
    for name, text, message in (
        ("class_map.json", '{"7": 1}', "class_map.json: nodes are numbered 0 .. 4 (found '7')"),
        ("class_map.json", '{"1": 1, "2": [1]}', "2: must hold labels of the same form"),
        ("class_map.json", '{"1": 1', "class_map.json: is not JSON"),
        ("class_map.json", '{"1": 1, "2": 0, "1": 0}', "'1' occurs twice"),
        ("class_map.json", '{"1": 1, "2": 0, "01": 0}', "01: this node occurs twice"),
        ("class_map.json", '{"1": true}', "1: must hold integers"),
        ("role.json", '{"tr": [1], "va": [], "te": [], "tr": [2]}', "'tr' occurs twice"),
        ("role.json", '{"tr": [1]}', "va: must be a list of node numbers"),
        ("role.json", '{"tr": [1], "va": [9], "te": []}', "node indices lie in 0 .. 4"),
    ):
        kept = (folder / name).read_text()
        (folder / name).write_text(text)
        assert message in refused(folder)
        (folder / name).write_text(kept)


def test_dgl_csv_folders(convert, refused, tmp_path):
    folder = tmp_path / "mini"
    folder.mkdir()
    meta = "dataset_name: mini\nedge_data:\n- file_name: edges_0.csv\nnode_data:\n"
    (folder / "meta.yaml").write_text(meta + "- file_name: nodes_0.csv\n")
    rows = "".join(f"{a},{b}\n" for a, b in PAIRS.T)
    (folder / "edges_0.csv").write_text("src_id,dst_id\n" + rows)
    masks = np.stack(list(MASKS.values()), axis=1)
    with (folder / "nodes_0.csv").open("w") as file:
        file.write("node_id,label,train_mask,val_mask,test_mask,feat\n")
        for k in range(5):
            mask = ",".join(str(bool(value)) if k % 2 else str(int(value)) for value in masks[k])
            mask = mask.replace("True", "1").replace("False", "0")
            file.write(f'{k},{Y[k]},{mask},"{X[k, 0]}, {X[k, 1]}"\n')
    check(convert(folder))
    whole = (folder / "edges_0.csv").read_text()
    (folder / "edges_0.csv").write_text("graph_id,src_id,dst_id\n0,0,1\n1,0,1\n")
    assert "has graph_id, like data sets of many graphs" in refused(folder)
    (folder / "edges_0.csv").write_text(whole)
    (folder / "meta.yaml").write_text(meta + "- file_name: ../nodes_0.csv\n")
    assert "names a file outside its folder" in refused(folder)
    (folder / "meta.yaml").write_text(meta + "- file_name: a.csv\n- file_name: b.csv\n")
    assert "names several tables of nodes or edges: add etype" in refused(folder)


@pytest.mark.parametrize("ending", ["graphml", "gexf"])
def test_graphml_and_gexf_files(convert, refused, tmp_path, ending):
    graph = nx.DiGraph() if ending == "gexf" else nx.Graph()
    for k in range(5):
        graph.add_node(f"n{k}", y=f"c{Y[k]}", a=float(X[k, 0]), b=float(X[k, 1]))
    graph.add_weighted_edges_from((f"n{a}", f"n{b}", a + 0.5) for a, b in PAIRS.T.tolist())
    path = tmp_path / f"g.{ending}"
    getattr(nx, f"write_{ending}")(graph, path)
    found = convert(path, "--label", "y", "--features", "a,b")
    both = [*PAIRS.T.tolist(), *(PAIRS.T[:, ::-1].tolist() if ending == "graphml" else [])]
    assert found.edges == sorted(map(tuple, both))
    np.testing.assert_array_equal(found.dense_features, X)
    assert found.nodes.labels.tolist() == Y.tolist() and found.weights[3, 4] == 3.5
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "can't be read" in refused(path)
    packed = tmp_path / f"g.{ending}.gz"  # a small file that expands to a large one
    packed.write_bytes(gzip.compress(whole + b" " * (64 << 20), 1))
    assert "takes more memory than is allowed" in refused(packed, "--memory", "2GiB")


def test_shchur_and_reddit_archives(convert, refused, tmp_path):
    a, x = matrix(), sp.csr_matrix(X)
    parts = {f"adj_{name}": getattr(a, name) for name in ("data", "indices", "indptr", "shape")}
    parts |= {f"attr_{name}": getattr(x, name) for name in ("data", "indices", "indptr", "shape")}
    for dotted in (False, True):
        if dotted:
            parts = {name.replace("_", "_matrix."): array for name, array in parts.items()}
        np.savez(tmp_path / "g.npz", **parts, labels=Y)
        graph = convert(tmp_path / "g.npz")
        assert graph.edges == sorted(map(tuple, PAIRS.T.tolist())) and graph.slab.weight is None
        np.testing.assert_array_equal(graph.dense_features, X)
    folder = tmp_path / "reddit"
    folder.mkdir()
    sp.save_npz(folder / "reddit_graph.npz", a.tocoo())
    np.savez(folder / "reddit_data.npz", feature=X, label=Y, node_types=[1, 2, 1, 3, 3])
    check(convert(folder))
    np.savez(folder / "reddit_data.npz", feature=X[:4], label=Y, node_types=[1, 2, 1, 3, 3])
    assert "feature: must have a row for each of the 5 nodes" in refused(folder)


def test_a_long_text_in_xml_is_read_in_large_pieces(tmp_path):
    """The parser reads 64 KiB at a time and scans an unfinished text again with each piece."""
    path = tmp_path / "g.graphml"
    path.write_bytes(b"x" * (4 << 20))
    pieces = []
    with path.open("rb") as file:
        bounded = xml_graphs._Bounded(file, path, 5 << 20)
        while piece := bounded.read(1 << 16):
            pieces.append(len(piece))
    assert sum(pieces) == 4 << 20 and len(pieces) < 10
