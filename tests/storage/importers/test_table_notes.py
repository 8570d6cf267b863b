"""Notes of `convert` on table columns that may be meant differently."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcgnn.storage.read.graph_file import GraphFile
from tests.storage.importers.test_tables import ENDS, write


@pytest.mark.parametrize(
    ("times", "labels", "option", "note"),
    [
        ("1122", "aabb", "--split-time", None),
        ("1112", "aabb", "--split-time", "separates nodes of the same time"),
        ("1111", "aaaa", "--split-ratio", None),
        ("1111", "aaab", "--split-ratio", "1 of 2 classes have too few labelled nodes (at most 1)"),
    ],
)
def test_splits_that_miss_classes_or_times_are_noted(
    made, tmp_path, capfd, times, labels, option, note
):
    rows = "".join(f"{k},{t},{y}\n" for k, (t, y) in enumerate(zip(times, labels, strict=True)))
    nodes = write(tmp_path / "n.csv", "id,t,y\n" + rows)
    time = ("--split-time", "t") if option == "--split-time" else ()
    edges = write(tmp_path / "e.csv", "a,b\n0,1\n")
    made(edges, nodes, *ENDS, "--nodes", 1, "--label", "y", *time, "--split-ratio", "1,1,0")
    said = capfd.readouterr().err
    assert (note or "") in said and (note is not None or "classes have" not in said)
    assert note is not None or "same time" not in said
    assert note is None or any(
        line.startswith("hpcgnn: note: ") and "e.csv" not in line
        for line in said.splitlines()
        if note in line
    )


def test_numbers_with_symbols_are_noted(made, tmp_path, capfd):
    edges = write(tmp_path / "e.csv", "a,b\np,q\n")
    nodes = write(tmp_path / "n.csv", "id,x,z\np,5%,k\nq,$3,5%\n")
    made(edges, nodes, *ENDS, "--nodes", 1, "--features", "x,z")
    said = capfd.readouterr().err
    assert "x has texts such as $3, each of which becomes a feature" in said
    assert "z has texts" not in said


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (["1 000", "2 500", "3 000"], "x has texts such as 1 000, each of which"),
        (["31/05/2021", "01/06/2021", "02/06/2021"], "x has texts such as 01/06/2021, each of"),
        (["(3)", "4-", "5%"], "x has texts such as (3), each of which"),
        (["1", "2", "#N/A"], "x has the value #N/A: if this means a missing value, use --na #N/A"),
        (
            ["1", "2", "many"],
            "x holds numbers and many (n.csv, line 4), each of which becomes a feature: "
            "use --na many",
        ),
        (["1 2", "3", "5 6 7"], "x has texts such as 1 2, each of which becomes a feature"),
        (["[1 2]", "[3 4]", "half"], "x holds numbers and half (n.csv, line 4), each of which"),
        (["a1", "b2", "3"], None),
    ],
)
def test_texts_that_look_like_numbers_are_noted(made, tmp_path, capfd, values, note):
    edges = write(tmp_path / "e.csv", "a,b\np,q\n")
    rows = "".join(f"{name},{value}\n" for name, value in zip("pqr", values, strict=True))
    nodes = write(tmp_path / "n.csv", "id,x\n" + rows)
    made(edges, nodes, *ENDS, "--nodes", 1, "--features", "x")
    said = capfd.readouterr().err
    assert note in said if note else "becomes a feature" not in said


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([f"k{k}" for k in range(40)], "y has 40 different values in 40 rows, each of which"),
        ([str(k) for k in range(40)], "y has 40 different values in 40 rows, each of which"),
        ([f"k{k % 20}" for k in range(40)], None),
        ([f"k{k % 3}" for k in range(40)], None),
        (["rot", "Rot ", "b", "B"], "y has the values 'Rot ' and 'rot', which count as different"),
        (["None", "k"], "y has the value None: if this means a missing value, use --na None"),
        (["2021-05-31", "2021-06-01T12:00"], "y holds dates such as 2021-05-31, each of which"),
        (["31/05/2021", "1/6/2021"], "y holds dates such as 1/6/2021, each of which becomes a c"),
        (["2021-05-31", "x"], None),
        (["-1", "0", "-1", "1"], "y is -1 in 2 rows, which becomes a class of its own: if this"),
        (["-1.0", "0.0", "1.0"], "y is -1 in 1 row, which becomes a class of its own: if this"),
        (["a", "-1", "b"], "y is -1 in 1 row, which becomes a class of its own: if this means"),
        (["-1", "-2", "0"], None),
        (["1.2.3", "1.2.4"], None),
    ],
)
def test_doubtful_labels_are_noted_with_their_file(made, tmp_path, capfd, labels, note):
    ends = "".join(f"n0,n{k}\n" for k in range(1, len(labels)))
    edges = write(tmp_path / "e.csv", "a,b\n" + ends)
    rows = "".join(f"n{k},{label}\n" for k, label in enumerate(labels))
    nodes = write(tmp_path / "n.csv", "id,y\n" + rows)
    path = made(edges, nodes, *ENDS, "--nodes", 1, "--label", "y")
    said = capfd.readouterr().err
    assert f"note: {nodes}: {note}" in said if note else "note: " not in said
    made(edges, nodes, "--nodes", 1, "--like", str(path), out="h.h5")
    assert "different values" not in capfd.readouterr().err


@pytest.mark.parametrize(("values", "said"), [(256, False), (257, True)])
def test_a_column_that_becomes_many_features_is_named(made, tmp_path, capfd, values, said):
    edges = write(tmp_path / "e.csv", "a,b\n0,1\n")
    rows = "".join(f"{k},city {k}\n" for k in range(values))
    nodes = write(tmp_path / "n.csv", "id,x\n" + rows)
    given = (*ENDS, "--nodes", 1, "--features", "x")
    made(edges, nodes, *given)
    note = f"x has {values} different values, each of which becomes a feature: leave it out"
    assert (note in capfd.readouterr().err) == said
    made(edges, nodes, *given, "--categorical", "x", out="h.h5")
    assert note not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("edges", "note"),
    [("p,q\nr,p\n", None), ("q,p\nq,q\n", "1 of 3 nodes"), ("r,r\n", "2 of 3 nodes have no edges")],
)
def test_nodes_without_edges_are_counted(made, tmp_path, capfd, edges, note):
    """Those of a table: a source, a target and a node with a loop have an edge."""
    nodes = write(tmp_path / "n.csv", "id,x\np,1\nq,2\nr,3\n")
    path = write(tmp_path / "e.csv", "a,b\n" + edges)
    made(path, nodes, *ENDS, "--nodes", 1, "--features", "x")
    said = capfd.readouterr().err
    assert note in said if note else "have no edges" not in said


def test_a_table_without_rows_is_noted(refused, tmp_path):
    edges = write(tmp_path / "e.csv", "a,b\np,q\n")
    nodes = write(tmp_path / "n.csv", "id,x\n")
    said = refused(edges, *ENDS, "--nodes", str(nodes), "--features", "x")
    assert said == f"hpcgnn: error: {nodes}: holds no rows"


def test_errors_in_graphml_name_the_node(refused, tmp_path):
    keys = '<key id="x" for="node" attr.name="x" attr.type="double"/>'
    keys += '<key id="w" for="edge" attr.name="w" attr.type="double"/>'
    nodes = '<node id="anna"><data key="x">1</data></node><node id="bob"/>'
    edges = '<edge source="anna" target="bob"/>'
    path = tmp_path / "g.graphml"
    write(path, f'<graphml>{keys}<graph edgedefault="directed">{nodes}{edges}</graph></graphml>')
    assert "node bob, x: is missing" in refused(path, "--features", "x")


def test_attributes_of_graphml_called_id_or_source_do_not_replace_its_own(made, tmp_path, capfd):
    """As igraph stores the former names of nodes."""
    graph = nx.DiGraph()
    for k in range(3):
        graph.add_node(f"n{k}", id=f"n{2 - k}", y=k)
    graph.add_edge("n0", "n1", source="n2", target="n0")
    nx.write_graphml(graph, tmp_path / "g.graphml")
    with GraphFile(made(tmp_path / "g.graphml", "--label", "y")) as found:
        slab, nodes = found.read_rows(0, 3), found.read_nodes(0, 3)
        names = found.names.texts(0, 3)
    target = int(np.argmax(np.diff(slab.indptr)))
    assert (names[slab.indices[0]], names[target]) == ("n0", "n1")
    assert dict(zip(names, nodes.labels.tolist(), strict=True)) == {"n0": 0, "n1": 1, "n2": 2}
    said = capfd.readouterr().err
    assert "attributes of the nodes called id are ignored" in said
    assert "attributes of the edges called source and target are ignored" in said


@pytest.mark.parametrize("inside", [False, True])
def test_graphml_with_several_graphs_is_refused(refused, made, tmp_path, inside):
    """Only the first would be read, and none inside a node."""
    one = '<graph edgedefault="directed"><node id="a"/><edge source="a" target="a"/></graph>'
    both = one.replace('<node id="a"/>', f'<node id="a">{one}</node>') if inside else one + one
    path = tmp_path / "g.graphml"
    assert "holds several graphs" in refused(write(path, f"<graphml>{both}</graphml>"))
    made(write(path, f"<graphml><!-- {one} -->{one}</graphml>"))


@pytest.mark.parametrize(("edges", "said"), [("p,p\nq,q\n", True), ("p,p\nq,p\n", False)])
def test_graphs_of_only_self_loops_are_noted(made, tmp_path, capfd, edges, said):
    made(write(tmp_path / "e.csv", "a,b\n" + edges), *ENDS)
    assert ("every edge is a self-loop" in capfd.readouterr().err) == said


@pytest.mark.parametrize("labels", [[-1, 3, 4], [-1.0, 3.0, 4.0], ["-1", "3", "4"]])
def test_numbers_that_mean_a_missing_value(made, tmp_path, capfd, labels):
    edges = write(tmp_path / "e.csv", "a,b\n0,1\n1,2\n")
    write(tmp_path / "n.csv", "id,y\n" + "".join(f"{k},{y}\n" for k, y in enumerate(labels)))
    pq.write_table(pa.table({"id": [0, 1, 2], "y": labels}), tmp_path / "n.parquet")
    for name in ("n.csv", "n.parquet"):
        given = (edges, tmp_path / name, *ENDS, "--nodes", 1, "--id", "id", "--label", "y")
        made(*given)
        suggested = capfd.readouterr().err.partition("unknown, use ")[2].partition(" (")[0]
        with GraphFile(made(*given, *suggested.split())) as graph:
            assert graph.read_nodes(0, 3).labels.tolist() == [-1, 0, 1]
        assert "class of its own" not in capfd.readouterr().err
