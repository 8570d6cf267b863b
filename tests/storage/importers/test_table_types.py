"""Tables by type, described in meta.yaml, compared with pyarrow and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from hpcgnn.storage.importers.spool import Scratch
from hpcgnn.storage.importers.table_files import open_tables
from hpcgnn.storage.importers.table_options import TextForm
from hpcgnn.storage.importers.table_types import FoundNodes
from hpcgnn.storage.read.graph_file import GraphFile

EDGES = """edge_data:
- {file_name: writes.parquet, etype: [user, writes, paper], source: author_id, target: paper_id}
- {file_name: cites.csv, etype: [paper, cites, paper], source: citing, target: cited}
- {file_name: located.csv, etype: [user, located, country], source: user, target: country}
node_data:
"""
NODES = """- {file_name: users.csv, ntype: user, id: user, features: 'kind,h*'}
- {file_name: papers.parquet, ntype: paper, id: paper, label: topic, features: [x1, x2]}
"""
ENDS = {
    "writes": ("writes.parquet", "author_id", "user", "paper_id", "paper"),
    "cites": ("cites.csv", "citing", "paper", "cited", "paper"),
    "located": ("located.csv", "user", "user", "country", "country"),
}


def write_tables(folder: Path, *, users: int = 30, papers: int = 50, topics: bool = True) -> Path:
    """Write the tables; numbers of papers are also those of users, as text."""
    rng = np.random.default_rng(users)
    folder.mkdir()
    (folder / "meta.yaml").write_text(EDGES + NODES)
    people = pa.array([f"{k:03d}" for k in rng.permutation(200)[:users]])
    numbers = pa.array(rng.permutation(200)[:papers])
    kinds = ["a", "b", *rng.choice(["a", "b"], users - 2)]
    table = {"user": people, "topic": rng.choice(["x", "y"], users), "kind": kinds}
    table |= {"h1": rng.normal(size=users), "h2": rng.integers(0, 9, users)}
    pa.csv.write_csv(pa.table(table), folder / "users.csv")
    named = pa.array([None, "cs", "bio", *rng.choice(["bio", "cs"], papers - 3)])
    table = {"paper": numbers, "x1": rng.normal(size=papers), "x2": rng.normal(size=papers)}
    table |= {"topic": named} if topics else {}
    pq.write_table(pa.table(table), folder / "papers.parquet")
    taken = {"user": people, "paper": numbers, "country": pa.array(["de", "7", "fr"])}
    for file, source, kind, target, other in ENDS.values():
        count = 60
        ends = {
            source: taken[kind].take(pa.array(rng.integers(0, len(taken[kind]), count))),
            target: taken[other].take(pa.array(rng.integers(0, len(taken[other]), count))),
        }
        write = pq.write_table if file.endswith("parquet") else pa.csv.write_csv
        write(pa.table(ends), folder / file)
    return folder


def load(path: Path) -> pa.Table:
    """Return a table as pyarrow reads it, with ids as text."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    names = ("user", "country")
    texts = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pa.csv.read_csv(path, convert_options=texts)


def ids(table: pa.Table, column: str, kind: str) -> list[str]:
    return [f"{kind}/{value}" for value in pc.cast(table[column], pa.string()).to_pylist()]


def named_edges(graph, relation: int) -> list[tuple[str, str]]:
    mine = graph.slab.relation == relation
    pairs = zip(graph.slab.indices[mine], graph.destinations[mine], strict=True)
    return sorted((graph.names[a], graph.names[b]) for a, b in pairs)


def test_tables_by_type_become_one_graph(convert, tmp_path, capfd):
    folder = write_tables(tmp_path / "g")
    graph = convert(folder, "--split-ratio", "1,1,1")
    notes = capfd.readouterr().err
    assert "no table of nodes of type country" in notes
    assert "users.csv: ignored: topic" in notes  # only one type has labels
    wanted = {kind: load(folder / name) for kind, name in
              (("user", "users.csv"), ("paper", "papers.parquet"))}  # fmt: skip
    located = load(folder / "located.csv")
    found = dict.fromkeys(ids(located, "country", "country"))
    assert graph.names[:80] == [n for k, t in wanted.items() for n in ids(t, k, k)]
    assert sorted(graph.names[80:]) == sorted(found)
    assert graph.nodes.type.tolist() == [0] * 30 + [1] * 50 + [2] * len(found)
    for number, (file, source, kind, target, other) in enumerate(ENDS.values()):
        table = load(folder / file)
        pairs = zip(ids(table, source, kind), ids(table, target, other), strict=True)
        assert named_edges(graph, number) == sorted(pairs)
    users, papers = wanted["user"], wanted["paper"]
    kinds = np.array(users["kind"].to_pylist())[:, None] == ["a", "b"]
    expected = np.column_stack([kinds, users["h1"], users["h2"]]).astype(np.float32)
    np.testing.assert_array_equal(graph.nodes.typed_features[0], expected)
    expected = np.column_stack([papers["x1"], papers["x2"]]).astype(np.float32)
    np.testing.assert_array_equal(graph.nodes.typed_features[1], expected)
    assert list(graph.nodes.typed_features) == [0, 1]
    topics = [{"bio": 0, "cs": 1, None: -1}[value] for value in papers["topic"].to_pylist()]
    assert graph.nodes.labels[30:80].tolist() == topics
    assert (np.delete(graph.nodes.labels, slice(30, 80)) == -1).all()
    known = graph.nodes.labels >= 0
    assert (graph.nodes.split[known] > 0).all() and not graph.nodes.split[~known].any()


def test_later_tables_by_type_are_read_alike(made, tmp_path):
    """Types, relations and categories keep their numbers, though the order differs."""
    first = made(write_tables(tmp_path / "first"))
    folder = write_tables(tmp_path / "later", users=9, papers=12, topics=False)
    lines = (EDGES + NODES).replace("label: topic, ", "").splitlines()
    lines[1:4], lines[5:] = lines[3:0:-1], lines[:4:-1]
    (folder / "meta.yaml").write_text("\n".join(lines))
    users = load(folder / "users.csv")
    ones = users.set_column(2, "kind", pa.array(["b"] * 9))
    pa.csv.write_csv(ones, folder / "users.csv")
    like = ("--like", str(first))
    with GraphFile(made(folder, *like, out="h.h5")) as graph, GraphFile(first) as before:
        encoding, old = graph.read_encoding(), before.read_encoding()
        assert encoding.node_types == old.node_types == ["user", "paper", "country"]
        assert encoding.edge_types == old.edge_types and encoding.relations == list(ENDS)
        assert encoding.classes == ["bio", "cs"]
        nodes, rows = graph.read_nodes(0, graph.num_nodes), graph.read_rows(0, graph.num_nodes)
        assert np.bincount(nodes.type)[:2].tolist() == [9, 12]
        np.testing.assert_array_equal(nodes.typed_features[0][:, :2], [[0, 1]] * 9)
        assert (rows.relation[nodes.type[rows.indices] == 1] == 1).all()


def test_dgl_folders_with_several_types(convert, tmp_path):
    folder = tmp_path / "g"
    folder.mkdir()
    (folder / "meta.yaml").write_text(
        "dataset_name: mini\nversion: 1.0.0\nseparator: ';'\nedge_data:\n"
        "- file_name: e0.csv\n  etype: [user, follows, user]\n"
        "- file_name: e1.csv\n  etype: [user, likes, item]\nnode_data:\n"
        "- file_name: n0.csv\n  ntype: user\n- file_name: n1.csv\n  ntype: item\n"
    )
    (folder / "e0.csv").write_text('src_id;dst_id;feat\n0;1;"1, 2"\n1;0;"3, 4"\n')
    (folder / "e1.csv").write_text('src_id;dst_id;feat\n1;5;"5, 6"\n')
    (folder / "n0.csv").write_text('node_id;label;train_mask;val_mask;test_mask;feat\n'
                                   '1;0;1;0;0;"7, 8"\n0;1;0;0;1;"9, 10"\n')  # fmt: skip
    (folder / "n1.csv").write_text("node_id\n5\n")
    graph = convert(folder)
    assert graph.names == ["user/1", "user/0", "item/5"]
    assert graph.nodes.typed_features[0].tolist() == [[7, 8], [9, 10]]
    assert graph.nodes.labels.tolist() == [0, 1, -1]
    assert graph.nodes.split[:, 0].tolist() == [1, 3, 0]
    places = zip(graph.slab.indices, graph.destinations, graph.slab.edge_features, strict=True)
    found = {(int(a), int(b)): x.tolist() for a, b, x in places}
    assert found == {(1, 0): [1, 2], (0, 1): [3, 4], (0, 2): [5, 6]}


def test_nodes_without_a_table_are_found_in_little_memory(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"n{k}" for k in rng.integers(0, 5000, 40_000)]
    (tmp_path / "e.csv").write_text("id\n" + "\n".join(rows) + "\n")
    tables = open_tables([tmp_path / "e.csv"], TextForm())
    nodes = FoundNodes([(tables[0], "id")], 1 << 10)
    with Scratch(tmp_path / "out", 1 << 16) as scratch:
        nodes.begin(scratch, map)
        for _ in range(2):
            found = [x for batch in nodes.batches({"id": "text"}) for x in batch.columns["id"]]
            assert [x.as_py() for x in found] == list(dict.fromkeys(rows))


def swap(folder: Path, old: str, new: str) -> None:
    path = folder / "meta.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# Each list holds the one before nine times: 9^19 texts in all.
BOMB = ", ".join(f"&a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 20))
BOMB = f"features: [&a0 [x], {BOMB}]"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("etype: [user, writes, paper], ", "", "names several tables of nodes or edges: add etype"),
        ("[user, writes, paper]", "[user, writes]", "must be etype: [type of the sources"),
        ("source: author_id", "sorce: author_id", "unknown key sorce: did you mean source?"),
        (", target: paper_id", "", "has columns author_id, paper_id: choose one by target: COLUMN"),
        ("target: paper_id", "target: paper", "paper_id, but not this one: did you mean paper_id?"),
        ("target: paper_id", "target: author_id", "a column is chosen for two purposes"),
        ("writes.parquet", "../writes.parquet", "names a file outside its folder"),
        ("source: citing", "source: citing, weight: cited", "is chosen for two purposes"),
        ("features: 'kind,h*'", "features: {a: 1}", "features must be text"),
        ("id: user, ", "id: user, label: topic, ", "labels for several types of nodes"),
        ("- {file_name: users.csv", "- {file_name users.csv: [", "is not YAML"),
        ("features: 'kind,h*'", BOMB, "aliases are not read"),
        (
            "[user, located",
            "[paper, located",
            "/g: id: located.csv, line 8: an edge ends at a node that",
        ),
    ],
)
def test_descriptions_that_do_not_fit(refused, tmp_path, old, new, message):
    folder = write_tables(tmp_path / "g")
    swap(folder, old, new)
    assert message in refused(folder)


def test_tables_that_do_not_fit(refused, made, tmp_path):
    folder = write_tables(tmp_path / "g")
    assert "--source is for tables of one type: name the columns" in refused(
        folder, "--source", "author_id"
    )
    remedy = (
        ": tables with names of their own, as for several types of nodes, are described in meta"
    )
    ends = ("--source", "author_id", "--target", "paper_id")
    assert (
        f"cites.csv: has columns citing, cited, but not author_id and paper_id{remedy}"
        in refused(folder / "writes.parquet", folder / "cites.csv", *ends)
    )
    nodes = ("--nodes", folder / "users.csv", folder / "papers.parquet", "--id", "user")
    text = refused(folder / "writes.parquet", *map(str, nodes), *ends)
    assert f"but not user{remedy}" in text
    first = made(folder)
    swap(folder, "[user, located, country]", "[user, from, country]")
    text = "is no type of edges of the graph of --like (found 'user-from-country')"
    assert text in refused(folder, "--like", str(first))
    plain = "was made from tables by type: describe these alike in meta.yaml"
    assert plain in refused(folder / "cites.csv", "--like", str(first))
    rows = pq.read_table(folder / "papers.parquet")
    pq.write_table(pa.concat_tables([rows, rows.slice(3, 1)]), folder / "papers.parquet")
    twice = ids(rows, "paper", "paper")[3]
    assert f"(found '{twice}')" in refused(folder)
