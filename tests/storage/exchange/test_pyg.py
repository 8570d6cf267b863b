"""Conversion of PyTorch Geometric graphs to graph.h5 and back, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hpcgnn
from hpcgnn.errors import InputError
from hpcgnn.storage.read.graph_file import GraphFile
from tests.late import Late

pyg = Late("torch_geometric.data")

N, E = 11, 40


def edges(rng: np.random.Generator, heads: int, tails: int, number: int) -> torch.Tensor:
    """Return edges [2, E] by destination, then source, as in graph.h5, some of them repeated."""
    ends = np.stack([rng.integers(0, heads, number), rng.integers(0, tails, number)])
    return torch.from_numpy(ends[:, np.lexsort(ends)])


def whole(seed: int = 0) -> pyg.Data:
    rng = np.random.default_rng(seed)
    made = torch.Generator().manual_seed(seed)

    def real(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made)

    split = torch.from_numpy(rng.integers(0, 4, (N, 2)))
    labels = torch.from_numpy(rng.integers(-1, 3, (N, 1)))
    data = pyg.Data(x=real(N, 3), edge_index=edges(rng, N, N, E), y=labels)
    data.train_mask, data.val_mask, data.test_mask = split == 1, split == 2, split == 3
    data.edge_weight, data.edge_attr = real(E).abs(), real(E, 2)
    data.edge_type = torch.arange(E)  # distinguishes parallel edges
    data.edge_label, data.edge_split = real(E, 2), torch.from_numpy(rng.integers(0, 4, E))
    data.pos, data.flag = real(N, 2).double(), real(N) > 0
    data.node_type = torch.from_numpy(rng.integers(0, 2, N))
    data.original_ids = torch.from_numpy(rng.permutation(1000)[:N])
    return data


def same(one: object, other: object) -> None:
    """Return whether both have the same stores with the same tensors, to the bit."""
    assert type(one) is type(other)
    assert one.metadata() == other.metadata() if isinstance(one, pyg.HeteroData) else True
    for mine, theirs in zip(one.stores, other.stores, strict=True):
        assert set(mine.keys()) == set(theirs.keys())
        for name in mine.keys():  # noqa: SIM118
            a, b = mine[name], theirs[name]
            if isinstance(a, torch.Tensor) and a.layout == torch.strided:
                assert a.dtype == b.dtype and a.shape == b.shape, name
                assert a.numpy().tobytes() == b.numpy().tobytes(), name
            elif isinstance(a, torch.Tensor):
                assert torch.equal(a.to_dense(), b.to_dense()), name
            else:
                assert a == b, name


def there_and_back(data, tmp_path, **options):
    with_n = data.clone()
    for store in with_n.node_stores:
        store.num_nodes = store.num_nodes
    back = hpcgnn.to_pyg(hpcgnn.from_pyg(data, tmp_path / "g.h5", **options))
    with GraphFile(tmp_path / "g.h5") as graph:
        graph.verify()
    same(with_n, back)
    return back


def test_a_round_trip_keeps_everything(tmp_path, capfd):
    data = whole()
    data.name = "a graph"
    back = data.clone()
    del back.name
    hpcgnn.from_pyg(data, tmp_path / "named.h5")
    assert "name" in capfd.readouterr().err
    there_and_back(back, tmp_path, compress=True)


def test_sets_of_nodes_of_another_name_are_named(tmp_path, capfd):
    mask = torch.tensor([True, False, False])
    data = pyg.Data(edge_index=torch.tensor([[0], [1]]), num_nodes=3, validation_mask=mask)
    hpcgnn.from_pyg(data, tmp_path / "g.h5")
    said = "validation_mask looks like the valid set of the nodes: val_mask is read"
    assert said in capfd.readouterr().err


def test_edges_in_any_order_are_the_same_graph(tmp_path):
    data, order = whole(), torch.randperm(E, generator=torch.Generator().manual_seed(1))
    turned = data.clone()
    turned.edge_index = data.edge_index[:, order]
    for name in ("edge_weight", "edge_attr", "edge_type", "edge_label", "edge_split"):
        turned[name] = data[name][order]
    same(
        hpcgnn.to_pyg(hpcgnn.from_pyg(data, tmp_path / "a.h5")),
        hpcgnn.to_pyg(hpcgnn.from_pyg(turned, tmp_path / "b.h5")),
    )


@pytest.mark.parametrize(
    ("y", "labels_as"),
    [
        (torch.arange(N) % 3, None),
        (torch.arange(N) % 2 == 0, None),
        (torch.rand(N), None),
        (torch.tensor([[0.5, float("nan")]] * N, dtype=torch.float64), None),
        ((torch.arange(N * 2) % 3 == 0).reshape(N, 2).float(), "several"),
        ((torch.arange(N * 2) % 3 - 1).reshape(N, 2), "several"),
        ((torch.arange(N * 2) % 3 == 0).reshape(N, 2).float(), "values"),
        (torch.arange(N).float() % 4, "classes"),
    ],
)
def test_a_round_trip_keeps_labels_of_every_kind(tmp_path, y, labels_as):
    data = pyg.Data(edge_index=whole().edge_index, y=y, num_nodes=N)
    there_and_back(data, tmp_path, labels_as=labels_as)


def test_sparse_features_and_adjacency(tmp_path):
    x = torch.tensor([[0, 2.0, 0]] * 3 + [[0, 0, 0]] + [[1, 0, 3]] * (N - 4))
    data = pyg.Data(x=x.to_sparse_csr(), edge_index=whole().edge_index)
    there_and_back(data, tmp_path)
    dense = torch.zeros(N, N)
    dense[2, 5], dense[0, 1] = 0.5, 2  # edges 5 -> 2 and 1 -> 0
    back = hpcgnn.to_pyg(
        hpcgnn.from_pyg(pyg.Data(adj_t=dense.to_sparse_csr(), num_nodes=N), tmp_path / "adj.h5")
    )
    assert back.edge_index.tolist() == [[1, 5], [0, 2]] and back.edge_weight.tolist() == [2, 0.5]


def typed(labels: bool = True) -> pyg.HeteroData:
    rng, data = np.random.default_rng(3), pyg.HeteroData()
    data["paper"].x, data["author"].x = torch.randn(6, 4), torch.randn(5, 2)
    data["venue"].num_nodes = 3
    if labels:
        data["author"].y = torch.tensor([0, 1, 2, -1, 1])
        data["author"].train_mask = torch.tensor([True, False, False, False, True])
        data["author"].val_mask = torch.tensor([False, True, False, False, False])
        data["author"].test_mask = torch.zeros(5, dtype=torch.bool)
    data["author", "writes", "paper"].edge_index = edges(rng, 5, 6, 12)
    data["paper", "cites", "paper"].edge_index = edges(rng, 6, 6, 9)
    data["paper", "in", "venue"].edge_index = edges(rng, 6, 3, 0)
    return data


def test_types_become_node_types_and_relations(tmp_path):
    there_and_back(typed(), tmp_path)
    with GraphFile(tmp_path / "g.h5") as graph:
        assert (graph.num_types, graph.num_relations, graph.num_classes) == (3, 3, 3)
        nodes = graph.read_nodes(0, 14)
    assert nodes.type.tolist() == [0] * 6 + [1] * 5 + [2] * 3
    assert nodes.labels.tolist() == [-1] * 6 + [0, 1, 2, -1, 1] + [-1] * 3
    data = typed(labels=False)
    data["author", "writes", "paper"].edge_attr = torch.randn(12, 1)
    data["paper", "cites", "paper"].edge_attr = torch.randn(9, 1)
    data["paper", "in", "venue"].edge_attr = torch.randn(0, 1)
    there_and_back(data, tmp_path, force=True)


def attributes(data: pyg.Data, **changed: torch.Tensor) -> pyg.Data:
    for name, value in changed.items():
        data[name] = value
    return data


def one_of_two() -> pyg.HeteroData:
    data = typed()
    data["paper"].y = torch.zeros(6, dtype=torch.long)
    return data


REFUSED = [
    (lambda: attributes(whole(), y=torch.zeros(3, dtype=torch.long)), "y: must have a row"),
    (lambda: attributes(whole(), edge_weight=torch.ones(3)), "edge_weight: must have a row"),
    (lambda: attributes(whole(), edge_weight=torch.full((E,), np.nan)), "finite"),
    (lambda: attributes(whole(), x=torch.full((N, 1), np.inf)), "finite"),
    (lambda: attributes(whole(), edge_index=torch.full((2, 1), N)), "must have a row"),
    (lambda: attributes(whole(), train_mask=torch.ones(N, 2) > 0), "in two sets"),
    (lambda: attributes(whole(), y=torch.ones(N, 2)), "labels_as='several'"),
    (lambda: attributes(whole(), y=torch.eye(N, 12).long()), "'one-hot' if these are classes"),
    (lambda: attributes(whole(), edge_label_index=torch.zeros(2, 2)), "edge_label_index"),
    (lambda: pyg.Data(edge_index=torch.tensor([[0], [9]]), num_nodes=2), "must be below 2"),
    (lambda: pyg.Data(x=torch.ones(2, 2)), "neither edge_index nor adj_t"),
    (lambda: {"x": 1}, "is not a Data"),
    (one_of_two, "labels for several node types"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_unsupported_content_is_refused(tmp_path, make, words):
    with pytest.raises(InputError) as caught:
        hpcgnn.from_pyg(make(), tmp_path / "g.h5")
    assert words in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_by_force(tmp_path):
    path = hpcgnn.from_pyg(whole(), tmp_path / "g.h5")
    with pytest.raises(InputError, match="exists already"):
        hpcgnn.from_pyg(whole(), path)
    hpcgnn.from_pyg(whole(1), path, force=True)


@pytest.mark.parametrize(
    "config",
    [
        {"node_types": [1, 2]},
        {"node_types": ["a"]},
        {"form": 3},
        {"form": {"dtype": {"x": "O"}}},
        {"node_types": ["a", "b"], "edge_types": [["a", "r", "a"]]},
    ],
)
def test_unexpected_stored_configurations_are_tolerated(tmp_path, config):
    from hpcgnn.storage.write.graph_writer import GraphWriter

    with GraphWriter(tmp_path / "g.h5", num_nodes=2, config=config) as writer:
        writer.append_rows([1, 0], [1], relation=[0])
        writer.append_types([0, 1])
        writer.append_features([[1.0], [2.0]])
    try:
        data = hpcgnn.to_pyg(tmp_path / "g.h5")
    except InputError as error:
        assert "edge_types" in str(error)
    else:
        assert data.num_edges == 1


@pytest.mark.parametrize("ids", [torch.tensor([70, 5, 9]), ["c", "a", "b"]])
def test_an_array_of_another_name_can_name_the_nodes(ids, tmp_path, capsys):
    data = pyg.Data(x=torch.ones(3, 1), edge_index=torch.tensor([[0, 1], [1, 2]]), user_id=ids)
    hpcgnn.from_pyg(data, tmp_path / "plain.h5")
    assert "named by their rows: from_pyg(..., ids='user_id') takes user_id" in (
        capsys.readouterr().err
    )
    hpcgnn.from_pyg(data, tmp_path / "named.h5", ids="user_id")
    assert "named by" not in capsys.readouterr().err
    kept = hpcgnn.to_pyg(tmp_path / "named.h5").original_ids
    assert list(kept) == list(ids)
    data.original_ids = [1, 2, 3]
    hpcgnn.from_pyg(data, tmp_path / "both.h5", ids="user_id")
    assert "original_ids are ignored, since user_id names the nodes" in capsys.readouterr().err
    assert list(hpcgnn.to_pyg(tmp_path / "both.h5").original_ids) == list(ids)
    with pytest.raises(InputError, match=r"ids: has no array of this name .*'nobody'"):
        hpcgnn.from_pyg(data, tmp_path / "no.h5", ids="nobody")
    with pytest.raises(InputError, match=r"ids: is not an array of the nodes .*'edge_index'"):
        hpcgnn.from_pyg(data, tmp_path / "no.h5", ids="edge_index")


def test_nodes_of_several_types_keep_their_ids(tmp_path, capsys):
    data = pyg.HeteroData()
    data["user"].x, data["user"].user_id = torch.ones(2, 1), ["ann", "bob"]
    data["item"].x, data["item"].item_id = torch.ones(2, 1), torch.tensor([70, 5])
    data["user", "buys", "item"].edge_index = torch.tensor([[0, 1], [1, 0]])
    out = tmp_path / "g.h5"

    def names(ids):
        hpcgnn.from_pyg(data, out, ids=ids, force=True)
        with GraphFile(out) as file:
            return file.names.texts(0, 4)

    assert names(None) == ["user/0", "user/1", "item/0", "item/1"]
    assert "ids={'item': 'item_id'}) takes item_id" in capsys.readouterr().err
    assert names("user_id") == ["user/ann", "user/bob", "item/0", "item/1"]
    both = {"user": "user_id", "item": "item_id"}
    assert names(both) == ["user/ann", "user/bob", "item/70", "item/5"]
    assert capsys.readouterr().err.count("takes item_id") == 1
    for wrong in ("nobody", {"tag": "id"}, {"item": "user_id"}):
        with pytest.raises(InputError, match=r"HeteroData: ids: no "):
            names(wrong)
    data["user"].user_id = ["ann", "ann"]
    with pytest.raises(InputError, match=r"user/user_id: gives two nodes the same name .*'ann'"):
        names("user_id")
