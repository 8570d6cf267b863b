"""Planetoid's files, and malicious pickles."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.planetoid import load_pickle

# Seven nodes: 0..3 in allx, test nodes 6 and 4 in this order; 5 is missing, as in citeseer.
GRAPH = {0: [1, 2, 2], 1: [0], 2: [0, 4], 3: [3], 4: [2, 6], 5: [], 6: [4]}
EDGES = {(0, 1), (0, 2), (2, 4), (4, 6)}
ALLX = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 0], [0, 0, 3]], np.float32)
TX = np.array([[6, 6, 0], [0, 0, 4]], np.float32)


def parts() -> dict[str, object]:
    return {
        "x": sp.csr_matrix(ALLX[:2]),
        "y": np.array([[1, 0], [0, 1]], np.int32),
        "allx": sp.csr_matrix(ALLX),
        "ally": np.array([[1, 0], [0, 1], [0, 0], [0, 1]], np.int32),
        "tx": sp.csr_matrix(TX),
        "ty": np.array([[0, 1], [1, 0]], np.int32),
        "graph": defaultdict(list, GRAPH),
    }


@pytest.fixture(params=[2, 4])
def folder(request, tmp_path) -> Path:
    for name, value in parts().items():
        (tmp_path / f"ind.tiny.{name}").write_bytes(pickle.dumps(value, request.param))
    (tmp_path / "ind.tiny.test.index").write_text("6\n4\n")
    return tmp_path


@pytest.mark.parametrize("name", ["", "ind.tiny", "ind.tiny.graph", "ind.tiny.test.index"])
def test_the_order_of_test_nodes_and_missing_test_nodes(convert, folder, name):
    graph = convert(folder / name)
    assert graph.edges == sorted(EDGES | {(b, a) for a, b in EDGES})
    truth = np.zeros((7, 3))
    truth[:4], truth[[6, 4]] = ALLX, TX
    assert (graph.dense_features == truth).all()
    assert graph.nodes.labels.tolist() == [0, 1, -1, 1, 0, -1, 1]
    assert graph.nodes.split[:, 0].tolist() == [1, 1, 2, 2, 3, 0, 3]


def test_nodes_without_a_row_are_named_and_widths_must_agree(convert, refused, folder, capfd):
    convert(folder)
    assert "no file has a row of 1 node up to the last test node, 6" in capfd.readouterr().err
    wide = sp.csr_matrix(np.ones((2, 4)))
    (folder / "ind.tiny.tx").write_bytes(pickle.dumps(wide))
    assert "tx: must have as many columns as allx, 3 (found 4)" in refused(folder)


def test_the_usual_treatment_can_be_overridden(convert, folder):
    graph = convert(folder, "--no-symmetrise", "--self-loops", "keep", "--row-normalise")
    assert graph.edges == sorted((a, b) for a, row in GRAPH.items() for b in row)
    assert graph.dense_features[6].tolist() == [0.5, 0.5, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cora_is_read(convert, data):
    graph = convert(data / "planetoid", "--row-normalise")
    counts = graph.counts
    assert (counts.num_nodes, counts.num_edges, counts.num_features) == (2708, 10556, 1433)
    assert counts.num_classes == 7
    assert [int((graph.nodes.split == k).sum()) for k in range(4)] == [1068, 140, 500, 1000]
    assert (np.bincount(graph.nodes.labels[graph.nodes.split[:, 0] == 1]) == 20).all()
    stem = str(data / "planetoid" / "ind.cora")
    loaded = {  # as the files' authors read them
        part: pickle.loads(Path(f"{stem}.{part}").read_bytes(), encoding="latin1")
        for part in ("allx", "tx", "ally", "ty", "graph")
    }
    test = np.loadtxt(f"{stem}.test.index", dtype=int)
    features = sp.vstack([loaded["allx"], loaded["tx"]]).tolil()
    labels = np.vstack([loaded["ally"], loaded["ty"]])
    features[test], labels[test] = features[np.sort(test)], labels[np.sort(test)]
    dense = features.toarray()
    np.testing.assert_allclose(graph.dense_features, dense / dense.sum(1, keepdims=True), rtol=1e-6)
    assert (graph.nodes.labels == labels.argmax(1)).all()
    pairs = {(a, b) for a, row in loaded["graph"].items() for b in row if a != b}
    assert graph.edges == sorted(pairs | {(b, a) for a, b in pairs})


@dataclass
class Evil:
    path: Path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused(refused, folder):
    harm = folder / "harm"
    names = [f"ind.tiny.{part}" for part in parts()]
    for name in names:
        before = (folder / name).read_bytes()
        for value in (Evil(harm), [Evil(harm)], np.array([Evil(harm)], object), {0: Evil(harm)}):
            (folder / name).write_bytes(pickle.dumps(value))
            if name != "ind.tiny.x":  # not read: all its rows are in allx
                assert "mkdir is not allowed" in refused(folder / "ind.tiny.graph")
        (folder / name).write_bytes(before)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "is not a pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "os.system is not allowed"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval is not allowed"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load is not allowed"),
        (b"cnumpy.core.multiarray\nscalar\n.", "scalar is not allowed"),
        (b"(i__main__\nX\n.", "__main__.X is not allowed"),
        (b"N" + b"r\xff\xff\xff\x7f.", "memo slot 2147483647"),
        (b"N" + b"p-5\n.", "is not a pickle"),
        (b"X\xff\xff\xff\x7fa.", "is not a pickle"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.", "is not a pickle"),
        (b"P1\n.", "is not a pickle"),
        (pickle.dumps(OrderedDict()), "collections.OrderedDict is not allowed"),
        (pickle.dumps(np.ones(3))[:-20], "is not a pickle"),
        (pickle.dumps(np.array(["a"])), "not of numbers"),
        (pickle.dumps(np.array([1, None], object)), "not of numbers"),
        (
            b"cnumpy\nndarray\n(I0\ntR(I1\n(I99999999\ntcnumpy\ndtype\n(S'i8'\ntR(I3\nS'<'\ntb"
            b"I00\nS'abc'\ntb.",
            "3 bytes for shape (99999999,)",
        ),
    ],
)
def test_other_pickles_are_refused(tmp_path, stored, message):
    (tmp_path / "p").write_bytes(stored)
    with pytest.raises(InputError) as error:
        load_pickle(tmp_path / "p", 1 << 30)
    assert message in str(error.value)


def csr(change: dict[str, object]) -> sp.csr_matrix:
    matrix = sp.csr_matrix(ALLX)
    for name, value in change.items():
        setattr(matrix, name, value)
    return matrix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allx": np.zeros((4, 3))}, "must be a SciPy CSR matrix"),
        ({"allx": csr({"indices": np.array([0, 1, 9], np.int32)})}, "columns are 0 .. 2 (found 9)"),
        ({"allx": csr({"indptr": np.array([0, 9, 2, 3, 3])})}, "row pointers must ascend"),
        ({"allx": csr({"indptr": np.array([0, 3])})}, "arrays don't fit its shape"),
        ({"allx": csr({"data": np.full(3, np.nan)})}, "is not a finite float32"),
        ({"allx": csr({"_shape": (4, -3)})}, "is not a shape"),
        ({"allx": csr({"data": "abc"})}, "data: is not a CSR matrix"),
        ({"tx": sp.csr_matrix(TX[:1])}, "has 1 rows, but there are 2 nodes"),
        ({"tx": sp.csr_matrix(TX[:, :2])}, "as many columns as allx, 3 (found 2)"),
        ({"ally": np.ones((4, 2), int)}, "a single 1 per row"),
        ({"ally": np.zeros(4, int)}, "one row per node"),
        ({"graph": {0: [1], 1: ["a"]}}, "must name nodes by integers"),
        ({"graph": {0: [1], 1: [2.0]}}, "must name nodes by integers"),
        ({"graph": {0: [1], 1: [True]}}, "must name nodes by integers"),
        ({"graph": {0: [1], 1: [10**30]}}, "must name nodes by integers"),
        ({"graph": {0: [1], 1: [7]}}, "neighbours of node 1: destination must be below 7"),
        ({"graph": [1, 2]}, "must be a dictionary of lists"),
    ],
)
@pytest.mark.parametrize("folder", [2], indirect=True)
def test_inconsistent_files_are_refused(refused, folder, change, message):
    for name, value in change.items():
        (folder / f"ind.tiny.{name}").write_bytes(pickle.dumps(value))
    found = refused(folder / "ind.tiny")
    assert message in found and "ind.tiny." in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6\nx\n", "line 2: is not an integer"),
        ("6\n6\n", "must list each test node once"),
        ("", "must list each test node once"),
        ("6\n-4\n", "must list each test node once"),
        ("6\n3\n", "test nodes must come after"),
        ("4\n999999999999\n", "leaves too many nodes out (found 999999999999)"),
    ],
)
@pytest.mark.parametrize("folder", [2], indirect=True)
def test_a_bad_test_index_is_refused(refused, folder, text, message):
    (folder / "ind.tiny.test.index").write_text(text)
    assert message in refused(folder)


@pytest.mark.parametrize("folder", [2], indirect=True)
def test_missing_files_are_named(refused, folder):
    for name in ("x", "y", "allx", "ally", "tx", "ty", "graph", "test.index"):
        path = folder / f"ind.tiny.{name}"
        path.rename(folder / "away")
        if name != "x":
            assert f"ind.tiny.{name}: no such file" in refused(folder / "ind.tiny")
        (folder / "away").rename(path)
    shutil.copy(folder / "ind.tiny.graph", folder / "ind.other.graph")
    assert "name one graph, as in ind.cora: there are 2" in refused(folder)
    assert "ind.NAME.graph" in refused(folder / "other.x", "--format", "planetoid")
