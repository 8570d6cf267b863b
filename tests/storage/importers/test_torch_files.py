"""Content of PyTorch Geometric's files besides edge_index and dense features."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from hpcgnn.storage.importers.torch_files import load
from tests.storage.importers.test_neighbours import PAIRS, Y, check, data

WEIGHTS = {(0, 1): 1.0, (1, 2): 2.0, (2, 0): 3.0, (3, 4): 4.0}


def fake_torch_sparse(monkeypatch):
    """Provide classes with the names and attributes of torch_sparse's."""
    made = {}
    for module, name in (("storage", "SparseStorage"), ("tensor", "SparseTensor")):
        found = types.ModuleType(f"torch_sparse.{module}")
        made[name] = type(name, (), {"__module__": found.__name__})
        setattr(found, name, made[name])
        monkeypatch.setitem(sys.modules, found.__name__, found)
    monkeypatch.setitem(sys.modules, "torch_sparse", types.ModuleType("torch_sparse"))
    return made


def adjacency(layout: str, monkeypatch):
    """Return an adjacency matrix whose rows are the destinations."""
    rows, columns = torch.from_numpy(PAIRS[1]), torch.from_numpy(PAIRS[0])
    values = torch.tensor([1.0, 2, 3, 4])
    whole = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (5, 5))
    if layout != "torch_sparse":
        return whole.to_sparse(layout=getattr(torch, f"sparse_{layout}"))
    made = fake_torch_sparse(monkeypatch)
    tensor, storage = made["SparseTensor"](), made["SparseStorage"]()
    by_row = whole.to_sparse_csr()
    storage.__dict__ = {"_row": None, "_rowptr": by_row.crow_indices(), "_sparse_sizes": (5, 5)}
    storage.__dict__ |= {"_col": by_row.col_indices(), "_value": by_row.values()}
    tensor.storage = storage
    return tensor


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "torch_sparse"])
def test_adj_t_is_read(convert, tmp_path, capfd, monkeypatch, layout):
    found = data()
    found.adj_t = adjacency(layout, monkeypatch)
    torch.save(found, tmp_path / "both.pt")
    check(convert(tmp_path / "both.pt"))
    assert "ignored: adj_t" in capfd.readouterr().err
    del found.edge_index
    torch.save(found, tmp_path / "g.pt")
    for name in [name for name in sys.modules if name.startswith("torch_sparse")]:
        del sys.modules[name]
    graph = convert(tmp_path / "g.pt")
    check(graph)
    assert graph.weights == WEIGHTS
    assert "beta" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:Sparse")
def test_invalid_sparse_matrices_are_refused(refused, tmp_path):
    def stored(pointers, columns, shape=(5, 5)):
        matrix = torch.sparse_csr_tensor(
            torch.tensor(pointers), torch.tensor(columns), torch.ones(3), shape
        )
        torch.save({"adj_t": matrix}, tmp_path / "g.pt")
        return refused(tmp_path / "g.pt")

    assert "adj_t: a graph is a square matrix" in stored([0, 1, 2, 3], [0, 1, 2], (3, 5))
    sound = [0, 1, 1, 1, 1, 3]
    for pointers, columns in (([0, 9, 1, 1, 1, 3], [0, 1, 2]), (sound, [0, 1, 77])):
        assert "g.pt: adj_t: is not a valid sparse matrix" in stored(pointers, columns)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_features_and_pairs_to_score(convert, tmp_path, capfd):
    found = data()
    dense = found.x
    found.x = dense.to_sparse_csr()
    found.edge_label, found.edge_label_index = torch.ones(2), torch.zeros(2, 2, dtype=torch.long)
    torch.save(found, tmp_path / "g.pt")
    check(convert(tmp_path / "g.pt"))
    assert "ignored: edge_label_index, edge_label" in capfd.readouterr().err


def test_one_graph_with_slices(convert, refused, tmp_path):
    found = data().to_dict()
    slices = {name: torch.tensor([0, 5]) for name in found}
    torch.save((found, slices), tmp_path / "g.pt")
    check(convert(tmp_path / "g.pt"))
    torch.save((found, slices | {"x": torch.tensor([0, 2, 5])}), tmp_path / "g.pt")
    assert "holds a data set of many graphs" in refused(tmp_path / "g.pt")


def test_features_and_labels_by_node_type(convert, refused, tmp_path, capfd):
    geometric = pytest.importorskip("torch_geometric.data")
    found = geometric.HeteroData()
    found["paper"].x, found["paper"].y = torch.ones(5, 2), torch.from_numpy(Y)
    found["place"].num_nodes = 2
    found["paper", "in", "place"].edge_index = torch.tensor([[0, 4], [0, 1]])
    found["paper", "in", "place"].edge_weight = torch.tensor([2.0, 3])
    path = tmp_path / "g.pt"
    torch.save(found, path)  # with records of edges, as PyTorch Geometric keeps them
    graph = convert(path)
    assert sorted(graph.weights.values()) == [2, 3]
    kept = found["place"]
    kept.feat = torch.ones(2, 3)
    torch.save(found, path)
    said = "place.feat: looks like features of the nodes: call it x, or use --leave-out place.feat"
    assert said in refused(path)
    capfd.readouterr()
    convert(path, "--leave-out", "place.feat")
    assert "ignored: place.feat" in capfd.readouterr().err
    assert "for --leave-out (found 'feat')" in refused(path, "--leave-out", "feat")
    found["paper"].dev_mask = torch.ones(5, dtype=torch.bool)
    del kept.feat
    torch.save(found, path)
    said = "looks like the valid set of the nodes: call it val_mask, or use --leave-out paper.dev_"
    assert said in refused(path)
    del found["paper"].y, found["paper"].dev_mask
    found["paper"].label = torch.from_numpy(Y)
    torch.save(found, path)
    assert "paper.label: looks like labels of the nodes: call it y" in refused(path)


@pytest.mark.parametrize("ids", [torch.tensor([70, 5, 9, 1, 0]), list("cabde")])
def test_ids_of_another_name(convert, refused, tmp_path, capfd, ids):
    path, found = tmp_path / "g.pt", data(user_id=ids)
    torch.save(found, path)
    check(convert(path))
    assert "--id user_id names them by user_id" in capfd.readouterr().err
    graph = convert(path, "--id", "user_id")
    check(graph)
    assert list(ids) == (graph.names or graph.nodes.original_ids.tolist())
    assert "user_id" not in capfd.readouterr().err
    found.original_ids = torch.arange(5)
    torch.save(found, path)
    graph = convert(path, "--id", "user_id")
    assert list(ids) == (graph.names or graph.nodes.original_ids.tolist())
    assert "original_ids are ignored, since user_id names the nodes" in capfd.readouterr().err
    assert "no such array in the file, for --id (found 'uid')" in refused(path, "--id", "uid")
    for wrong in ("edge_index", "x"):
        said = f"{wrong}: ids of nodes are integers or a list of texts"
        assert said in refused(path, "--id", wrong)
    assert "--label is for tables" in refused(path, "--label", "y")


def test_ids_by_node_type(convert, tmp_path, capfd):
    geometric = pytest.importorskip("torch_geometric.data")
    found = geometric.HeteroData()
    found["user"].num_nodes, found["user"].uid = 2, ["ann", "bob"]
    found["item"].num_nodes, found["item"].item_id = 2, torch.tensor([70, 5])
    found["tag"].num_nodes = 1
    found["user", "buys", "item"].edge_index = torch.tensor([[0, 1], [1, 0]])
    path = tmp_path / "g.pt"
    torch.save(found, path)
    assert convert(path).names == ["user/0", "user/1", "item/0", "item/1", "tag/0"]
    assert "--id item_id names them by item_id" in capfd.readouterr().err
    graph = convert(path, "--id", "uid,item_id")
    assert graph.names == ["user/ann", "user/bob", "item/70", "item/5", "tag/0"]


def test_classes_registered_as_safe_are_not_instantiated(tmp_path):
    """None of their methods runs, even if they are imported, and in any order of registration."""
    geometric = pytest.importorskip("torch_geometric.data")
    torch.save(data(), tmp_path / "g.pt")
    others = [geometric.Data, geometric.storage.GlobalStorage]
    with torch.serialization.safe_globals(others):
        for _ in range(8):
            assert type(load(tmp_path / "g.pt", 1 << 30)).__module__ != geometric.Data.__module__
        assert set(others) <= set(torch.serialization.get_safe_globals())
