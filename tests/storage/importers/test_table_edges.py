"""Labels and the split of edges from columns of their tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcgnn.storage.read.graph_file import GraphFile
from tests.storage.importers.test_tables import ENDS, write


def edges_of(path):
    """Return `(source, destination): (label, split)` of each edge, and the class names."""
    with GraphFile(path) as graph:
        rows, classes = graph.read_rows(0, graph.num_nodes), graph.read_encoding().edge_classes
    targets = np.repeat(np.arange(len(rows.indptr) - 1), np.diff(rows.indptr))
    nothing = [None] * len(rows.indices)
    labels = nothing if rows.edge_labels is None else rows.edge_labels.tolist()
    split = nothing if rows.edge_split is None else rows.edge_split.tolist()
    pairs = list(zip(rows.indices.tolist(), targets.tolist(), strict=True))
    return dict(zip(pairs, zip(labels, split, strict=True), strict=True)), classes


def test_edge_classes_by_name(made, tmp_path):
    """Missing classes are unknown; later tables use the first one's and may lack the column."""
    text = "a,b,kind,when\n0,1,late,train\n1,2,,TEST\n2,0,early,\n"
    edges = write(tmp_path / "e.csv", text)
    more = write(tmp_path / "f.csv", "a,b,when\n3,0,valid\n")
    options = ("--edge-label", "kind", "--edge-split-column", "when")
    first = made(edges, more, *ENDS, *options)
    found = {(0, 1): (1, 1), (1, 2): (-1, 3), (2, 0): (0, 0), (3, 0): (-1, 2)}
    assert edges_of(first) == (found, ["early", "late"])
    later = write(tmp_path / "g.csv", "a,b,kind\n0,1,late\n")
    like = ("--like", str(first))
    assert edges_of(made(later, *like, out="h.h5")) == ({(0, 1): (1, None)}, ["early", "late"])
    later = write(tmp_path / "g.csv", "a,b\n0,1\n")
    assert edges_of(made(later, *like, out="h.h5"))[0] == {(0, 1): (None, None)}
    table = pa.table({"a": [0, 1], "b": [1, 0], "kind": pa.array([True, None])})
    pq.write_table(table, tmp_path / "e.parquet")
    found = {(0, 1): (0, None), (1, 0): (-1, None)}
    path = made(tmp_path / "e.parquet", *ENDS, "--edge-label", "kind")
    assert edges_of(path) == (found, ["true"])


def test_numeric_and_multiple_edge_labels(made, tmp_path):
    edges = write(tmp_path / "e.csv", "a,b,p,q,r,s,t\n0,1,1,0,True,False,False\n1,0,,1,,,1\n")
    values = ("--edge-label", "p", "--edge-labels-as", "values")
    found, classes = edges_of(made(edges, *ENDS, *values))
    assert found[0, 1] == (1.0, None) and np.isnan(found[1, 0][0]) and classes == []
    options = ("--edge-label", "p,q", "--edge-split-column", "r,s,t")
    found, classes = edges_of(made(edges, *ENDS, *options))
    assert found == {(0, 1): ([1, 0], 1), (1, 0): ([-1, 1], 3)} and classes == ["p", "q"]


def test_the_reverse_of_an_edge_has_its_label(made, tmp_path, refused):
    edges = write(tmp_path / "e.csv", "a,b,k\n0,1,x\n1,0,\n1,2,\n2,1,\n2,0,y\n")
    options = (*ENDS, "--edge-label", "k", "--symmetrise")
    found, _ = edges_of(made(edges, *options))
    both = {(0, 1): 0, (1, 2): -1, (2, 0): 1}
    assert {pair: label for pair, (label, _) in found.items()} == both | {
        (b, a): label for (a, b), label in both.items()
    }
    write(edges, "a,b,k\n0,1,x\n1,0,y\n")
    assert "or its reverse, have different labels" in refused(edges, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--edge-label", "z"), "has columns a, b, k, s, n, but not this one"),
        (("--edge-label", "a"), "a column is chosen for two purposes"),
        (("--edge-label", "k", "--edge-features", "k"), "is both a feature and something else"),
        (("--edge-label", "n"), "line 2, n: is not a whole number: --edge-labels-as values"),
        (("--edge-label", "k,n"), "k: must hold numbers where labels are values or several"),
        (("--edge-label", "k", "--edge-labels-as", "values"), "k: must hold numbers"),
        (("--edge-labels-as", "values"), "says what --edge-label COLUMN holds: name it"),
        (("--edge-split-column", "s"), "line 3, s: must be train, valid, test or empty"),
        (("--edge-split-column", "s,k"), "--edge-split-column takes one column, or three masks"),
        (("--edge-label", "k", "--edge-labels", "l.npy"), "have the same meaning: leave one out"),
    ],
)
def test_bad_edge_labels_are_refused(refused, tmp_path, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("l.npy", np.zeros(2, np.int64))
    edges = write(tmp_path / "e.csv", "a,b,k,s,n\n0,1,x,train,0.5\n1,0,y,yes,1\n")
    assert message in refused(edges, *ENDS, *options)
