"""Conversion of networkx, SciPy and DGL graphs to graph.h5, and back to PyTorch Geometric."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch

import hpcgnn
from hpcgnn.errors import InputError
from hpcgnn.storage.read.graph_file import GraphFile


class DglFrames:
    """A stand-in for `graph.edges` or `graph.nodes` of a DGLGraph, which is called and indexed."""

    def __init__(self, frames: dict, ends: dict | None = None) -> None:
        self.frames, self.ends = frames, ends

    def __getitem__(self, kind):
        return SimpleNamespace(data=self.frames[kind])

    def __call__(self, etype=None):
        return self.ends[etype or next(iter(self.ends))]


class DglGraph:
    """A stand-in for the parts of a DGLGraph that are used, from DGL's documentation."""

    def __init__(self, counts: dict, ends: dict, ndata: dict, edata: dict) -> None:
        self.ntypes, self.canonical_etypes = list(counts), list(ends)
        self._counts = counts
        self.nodes, self.edges = DglFrames(ndata), DglFrames(edata, ends)

    def num_nodes(self, kind=None):
        return sum(self._counts.values()) if kind is None else self._counts[kind]

    @property
    def ndata(self):
        return self.nodes.frames[self.ntypes[0]]

    @property
    def edata(self):
        return self.edges.frames[self.canonical_etypes[0]]


def test_a_dgl_graph_is_converted(tmp_path, capfd):
    kind = ("_N", "_E", "_N")
    ends = (torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))
    nodes = {"feat": torch.randn(3, 2), "label": torch.tensor([0, 1, -1]), "deg": torch.arange(3)}
    nodes["train_mask"] = torch.tensor([True, False, False])
    edges = {"weight": torch.tensor([[0.5], [1], [2]]), "dist": torch.ones(3)}
    graph = DglGraph({"_N": 3}, {kind: ends}, {"_N": nodes}, {kind: edges})
    data = hpcgnn.to_pyg(hpcgnn.from_dgl(graph, tmp_path / "g.h5"))
    assert data.edge_index.tolist() == [[2, 0, 1], [0, 1, 2]]
    assert torch.equal(data.x, nodes["feat"]) and torch.equal(data.y, nodes["label"])
    assert torch.equal(data.train_mask, nodes["train_mask"]) and not data.val_mask.any()
    assert torch.equal(data.edge_weight, edges["weight"]) and torch.equal(data.deg, nodes["deg"])
    assert "ignored of the edges: dist" in capfd.readouterr().err
    named = {"dist": "edge_weight", "weight": "other"}
    data = hpcgnn.to_pyg(hpcgnn.from_dgl(graph, tmp_path / "w.h5", names=named))
    assert torch.equal(data.edge_weight, edges["dist"])


def test_a_dgl_heterograph_is_converted(tmp_path):
    plays, likes = ("user", "plays", "game"), ("user", "likes", "user")
    ends = {
        plays: (torch.tensor([0, 1]), torch.tensor([1, 1])),
        likes: (torch.tensor([1]), torch.tensor([0])),
    }
    nodes = {"user": {"feat": torch.randn(2, 3), "label": torch.tensor([1, 0])}, "game": {}}
    nodes["user"]["_ID"] = torch.tensor([70, 5])
    graph = DglGraph({"user": 2, "game": 4}, ends, nodes, {plays: {}, likes: {}})
    data = hpcgnn.to_pyg(hpcgnn.from_dgl(graph, tmp_path / "g.h5"))
    assert data.metadata() == (["user", "game"], [plays, likes])
    assert torch.equal(data["user"].x, nodes["user"]["feat"]) and data["game"].num_nodes == 4
    assert data["user"].y.tolist() == [1, 0]
    assert data[plays].edge_index.tolist() == [[0, 1], [1, 1]]
    with GraphFile(tmp_path / "g.h5") as file:
        names = file.names.texts(0, 6)
    assert names == ["user/70", "user/5", *(f"game/{row}" for row in range(4))]


def test_a_networkx_graph_is_converted(tmp_path, capfd):
    graph = networkx.karate_club_graph()
    club = {"Mr. Hi": 0, "Officer": 1}
    for node in graph:
        graph.nodes[node]["y"] = club[graph.nodes[node]["club"]]
        graph.nodes[node]["place"] = [float(node), 0.5]
        graph.nodes[node]["train_mask"] = node in (0, 33)
    del graph.nodes[5]["y"]
    data = hpcgnn.to_pyg(hpcgnn.from_networkx(graph, tmp_path / "g.h5"))
    assert "ignored of the nodes: club" in capfd.readouterr().err
    matrix = networkx.to_scipy_sparse_array(graph, weight="weight", format="coo")
    found = scipy.sparse.coo_array((data.edge_weight, data.edge_index.numpy()), shape=(34, 34))
    assert (abs(matrix - found) > 0).nnz == 0 and data.num_edges == 2 * 78
    assert data.y[5] == -1 and data.y[33] == 1 and data.train_mask.nonzero().T.tolist() == [[0, 33]]
    assert data.place.dtype == torch.float64 and data.place[3].tolist() == [3, 0.5]


def test_directed_networkx_graphs_and_their_ids_are_converted(tmp_path, capfd):
    graph = networkx.MultiDiGraph([(70, 5, {"weight": 2.5}), (70, 5), (5, 5)])
    data = hpcgnn.to_pyg(hpcgnn.from_networkx(graph, tmp_path / "g.h5"))
    assert data.original_ids.tolist() == [70, 5]
    assert data.edge_index.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert data.edge_weight.tolist() == [2.5, 1, 1]
    for number, (ends, names) in enumerate(
        (
            (("zoë", "a, b"), ["zoë", "a, b"]),
            (((0, 1), 7), ["(0, 1)", "7"]),
            ((1, "1"), None),
        )
    ):
        path = hpcgnn.from_networkx(networkx.Graph([ends]), tmp_path / f"{number}.h5")
        data = hpcgnn.to_pyg(path)
        assert data.get("original_ids") == names
        assert ("nodes are numbered" in capfd.readouterr().err) == (names is None)
        if names is not None:  # and back
            again = hpcgnn.to_pyg(hpcgnn.from_pyg(data, tmp_path / f"{number}.again.h5"))
            assert again.original_ids == names and torch.equal(again.edge_index, data.edge_index)
    matrix = scipy.sparse.eye_array(2, format="csr")
    for names in (["a"], ["a", "a"], ["a", ""]):
        with pytest.raises(InputError, match=r"original_ids: (gives two|must be 2 texts)"):
            hpcgnn.from_scipy(matrix, tmp_path / "no.h5", original_ids=names)
    assert not (tmp_path / "no.h5").exists()


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_a_scipy_matrix_is_converted(tmp_path, form):
    rng = np.random.default_rng(0)
    matrix = scipy.sparse.random_array((9, 9), density=0.3, rng=rng, dtype=np.float32)
    matrix = matrix.asformat(form)
    x = scipy.sparse.random_array((9, 4), density=0.3, rng=rng, dtype=np.float32)
    path = hpcgnn.from_scipy(
        matrix, tmp_path / "g.h5", x=x, y=np.arange(9) % 3, age=np.arange(9.0), labels_as="classes"
    )
    data = hpcgnn.to_pyg(path)
    found = scipy.sparse.coo_array((data.edge_weight, data.edge_index.numpy()), shape=(9, 9))
    np.testing.assert_array_equal(found.toarray(), matrix.toarray())
    np.testing.assert_array_equal(data.x.to_dense(), x.toarray())
    assert data.y.tolist() == [0, 1, 2] * 3 and data.age.tolist() == list(range(9))
    plain = hpcgnn.to_pyg(hpcgnn.from_scipy(matrix, tmp_path / "plain.h5", weights=False))
    assert "edge_weight" not in plain and plain.num_edges == matrix.nnz


def test_other_objects_are_refused(tmp_path):
    for function, thing in (
        (hpcgnn.from_dgl, networkx.Graph()),
        (hpcgnn.from_networkx, scipy.sparse.eye_array(3)),
        (hpcgnn.from_scipy, np.eye(3)),
        (hpcgnn.from_scipy, scipy.sparse.csr_array((3, 4))),
        (hpcgnn.from_networkx, networkx.Graph()),
    ):
        with pytest.raises(InputError):
            function(thing, tmp_path / "g.h5")
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_conversions_do_not_start_mpi(tmp_path):
    program = (
        "import sys, hpcgnn, scipy.sparse\n"
        f"hpcgnn.from_scipy(scipy.sparse.eye_array(3), {str(tmp_path / 'g.h5')!r})\n"
        "print('mpi4py' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
