"""Tables of edges and nodes, joined by id."""

from __future__ import annotations

import csv
import gzip
import random
from decimal import Decimal
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcgnn.cli.main import main
from hpcgnn.storage.importers.names import NameStore, hashes
from hpcgnn.storage.importers.spool import Scratch
from hpcgnn.storage.read.graph_file import GraphFile

ENDS = ("--source", "a", "--target", "b")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def names(path: Path) -> list[str]:
    with GraphFile(path) as graph:
        return graph.names.texts(0, graph.num_nodes)


def test_tables_are_joined_by_name(made, tmp_path, capfd):
    """Compared with Python's csv, with ids that need quotes and with other alphabets."""
    rng = random.Random(0)
    ids = [f"né, {k}" if k % 3 else f'"{k}"' for k in range(200)]
    with (tmp_path / "n.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["note", "who", "kind", "f0", "f1", "colour"])
        rows = {
            name: (
                rng.choice(["x", "yy"]),
                rng.random(),
                rng.randrange(9),
                rng.choice(["", "r", "b"]),
            )
            for name in ids
        }
        for name, (kind, *numbers, colour) in rows.items():
            out.writerow(["text, quoted", name, kind, *numbers, colour])
    edges = [(rng.choice(ids), rng.choice(ids), round(rng.random(), 3)) for _ in range(3000)]
    with (tmp_path / "e.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";", lineterminator="\r\n").writerows([("w", "to", "from")])
        csv.writer(file, delimiter=";", lineterminator="\r\n").writerows(
            (w, b, a) for a, b, w in edges
        )
    path = made(
        tmp_path / "e.csv",
        tmp_path / "n.csv",
        "--source",
        "from",
        "--target",
        "to",
        "--weight",
        "w",
        "--nodes",
        1,
        "--id",
        "who",
        "--label",
        "colour",
        "--features",
        "kind,f*",
        "--split-ratio",
        "2,1,1",
    )
    assert "n.csv: ignored: note" in capfd.readouterr().err
    with GraphFile(path) as graph:
        slab, nodes = graph.read_rows(0, 200), graph.read_nodes(0, 200)
        encoding = graph.read_encoding()
        assert graph.names.texts(0, 200) == ids
    destinations = np.repeat(np.arange(200), np.diff(slab.indptr))
    found = [
        (ids[s], ids[d], w) for s, d, w in zip(slab.indices, destinations, slab.weight, strict=True)
    ]
    assert sorted((a, b) for a, b, _ in found) == sorted((a, b) for a, b, _ in edges)
    np.testing.assert_allclose(
        sorted(w for *_, w in found), sorted(w for *_, w in edges), rtol=1e-6
    )
    assert encoding.classes == ["b", "r"] and encoding.features[0].values == ["x", "yy"]
    for k, (kind, f0, f1, colour) in enumerate(rows.values()):
        np.testing.assert_allclose(
            nodes.features[k], [kind == "x", kind == "yy", f0, f1], rtol=1e-6
        )
        assert nodes.labels[k] == {"": -1, "b": 0, "r": 1}[colour]
    split = nodes.split[:, 0]
    assert (split[nodes.labels < 0] == 0).all()
    for label in (0, 1):
        counts = np.bincount(split[nodes.labels == label], minlength=4)
        total = counts.sum()
        assert (
            counts[0] == 0 and abs(counts[1] - total / 2) <= 1 and abs(counts[2] - total / 4) <= 1
        )


@pytest.mark.slow
def test_parquet_compressed_text_and_little_memory_give_the_same_graph(made, tmp_path):
    rng = np.random.default_rng(0)
    ids = np.array([f"id{k}" for k in rng.permutation(5000)])
    pairs = ids[rng.integers(0, 5000, (40_000, 2))]
    text = "a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in pairs)
    write(tmp_path / "e.tsv", text)
    (tmp_path / "e.tsv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    (tmp_path / "e.tsv.zst").write_bytes(pa.compress(text.encode(), "zstd", asbytes=True))
    table = pa.table({"a": pairs[:, 0], "b": pa.array(pairs[:, 1]).dictionary_encode()})
    pq.write_table(table, tmp_path / "e.parquet")
    found = {}
    for ending in ("tsv", "tsv.gz", "tsv.zst", "parquet"):
        path = made(tmp_path / f"e.{ending}", *ENDS)
        with GraphFile(path) as graph:
            found[ending] = graph.fingerprint
            assert "weight" not in graph.config or graph.num_nodes <= 5000
    met = list(dict.fromkeys(pairs.T.reshape(-1).tolist()))
    assert sorted(names(path)) == sorted(met)
    assert len({found["tsv"], found["tsv.gz"], found["tsv.zst"]}) == 1


def test_names_are_matched_with_little_memory(tmp_path):
    """With memory for a few hashes, repeated names are still kept once, in the same order."""
    rng = np.random.default_rng(0)
    texts = [f"{'x' * (k % 23)}{k}" for k in rng.integers(0, 900, 5000)]
    kept = {}
    for limit in (1 << 12, 1 << 24):
        with Scratch(tmp_path / "out", limit) as scratch:
            store = NameStore(tmp_path, limit)
            store.begin(scratch)
            ids = [store.add(pa.array(texts[low : low + 100])) for low in range(0, 5000, 100)]
            rows = np.concatenate(list(store.ids()))
            found = [
                data.tobytes().decode()[end - length : end]
                for lengths, data in store.names()
                for length, end in zip(lengths, np.cumsum(lengths), strict=True)
            ]
        assert found == list(dict.fromkeys(texts))
        position = {int(id): k for k, id in enumerate(rows)}
        assert [found[position[int(id)]] for id in np.concatenate(ids)] == texts
        kept[limit] = found


def test_hashes_distinguish_texts():
    texts = ["", "a", "b", "ab", "ba", "a" * 8, "a" * 9, "a" * 16, "a" * 17, "a" * 7 + "\0"]
    texts += [f"{k:09d}" for k in range(20_000)]
    ids, checks = hashes(pa.array(texts))
    assert ids.min() >= 0 and len(set(ids.tolist())) == len(set(checks.tolist())) == len(texts)
    again, _ = hashes(pa.array(["other", *texts]).slice(1))
    assert (again == ids).all()


def test_like_reads_later_tables_in_the_same_way(made, refused, tmp_path):
    nodes = write(tmp_path / "n.csv", "id,kind,x,y\np,u,1,red\nq,v,,blue\nr,,3,\n")
    edges = write(tmp_path / "e.csv", "a,b,kind\np,q,likes\nq,r,knows\n")
    options = (
        "--features",
        "kind,x",
        "--label",
        "y",
        "--missing",
        "mean",
        "--relation",
        "kind",
        "--symmetrise",
    )
    first = made(edges, nodes, *ENDS, "--nodes", 1, *options)
    with GraphFile(first) as graph:
        assert graph.read_nodes(0, 3).features.tolist() == [[1, 0, 1], [0, 1, 2], [0, 0, 3]]
        assert graph.num_edges == 4
    more = write(tmp_path / "m.csv", "x,kind,id\n7,w,s\n,u,t\n")
    edge = write(tmp_path / "f.csv", "a,b,kind\ns,p,knows\n")
    second = made(edges, edge, nodes, more, "--nodes", 2, "--like", str(first), out="h.h5")
    with GraphFile(second) as graph:
        assert graph.num_edges == 6 and graph.num_relations == 2
        found = graph.read_nodes(0, 5)
        assert found.features[3:].tolist() == [[0, 0, 7], [1, 0, 2]]
        assert found.labels.tolist() == [1, 0, -1, -1, -1] and graph.num_classes == 2
    third = made(
        edge,
        more,
        write(tmp_path / "p.csv", "id,x,kind\np,1,u\n"),
        "--nodes",
        2,
        "--like",
        str(second),
        out="i.h5",
    )
    with GraphFile(first) as a, GraphFile(third) as c:
        assert c.read_encoding().like == a.fingerprint
        assert c.num_classes == 0 or c.num_classes == 2
    assert names(third) == ["s", "t", "p"]
    write(edge, "a,b,kind\ns,p,hates\n")
    said = refused(edges, edge, "--nodes", str(nodes), str(more), "--like", str(first))
    assert "line 2, kind: is not one of the known relations (found 'hates')" in said
    write(more, "x,kind,id,y\n7,u,s,green\n")
    said = refused(edges, "--nodes", str(nodes), str(more), "--like", str(first))
    assert "line 2, y: is not one of the known classes (found 'green')" in said


MASKS = ("--split-column", "s,t,u")
CLASS = ("--label", "y")
TIMES = ("--label", "y", "--split-time", "t")
LATE = "a,b\n" + "7,8\n" * 1001 + "7,08\n"
LONG = "a,b\n7,8\n7," + "1" * 200_000


@pytest.mark.parametrize(
    ("edges", "nodes", "options", "message"),
    [
        ("a,b\np,z\n", None, (), "e.csv, line 2: an edge ends at a node that is not"),
        ("a,b\np,q\np\n", None, (), "line 3: has 1 column, but the first line has 2"),
        ("a,b\np,q\n,q\n", None, (), "line 3 is null or empty"),
        ('a,b\np,q\n"p,q\n', None, (), "line 3: has a quote that is not closed"),
        ("a,b,w\np,q,1\n\np,q,x\n", None, ("--weight", "w"), "line 4: w: is not a number"),
        ("a,b,w\np,q,\n", None, ("--weight", "w"), "w: line 2 is null or empty"),
        ("a,b\np,q\n", "id,x\np,1\nq,2\np,3\n", (), "line 4: is listed twice (found 'p')"),
        ("a,b\np,q\n", "id,x\np,1\nq,\n", ("--features", "x"), "line 3, x: is missing: --missing"),
        ("a,b\np,q\n", "id,x\np,1\nq,inf\n", ("--features", "x"), "line 3, x: is not a finite"),
        ('a,b\np,"q\nq\n', None, (), "line 2: has a quote that is not closed"),
        (LATE, "id\n7\n8\n", (), "line 1003: b: begins with 0: --string-ids"),
        ("a,b\np,q\n", "id,y\np,1\nq,2\n" + "q,2\n" * 999 + "q,02\n", CLASS, "begins with 0"),
        ("a,b\np,e\u0301\n", "id\np\n\u00e9\n", (), "in this Unicode form (not NFC)"),
        ('a, b\np, "q"\n', None, (), "a quote follows a space"),
        ("a,b\n1.0,2.0\n1.5,2.0\n", "id\n1\n2\n", (), "line 3, a: is not a whole number"),
        (f"a,b\n7,{2**64 - 1}\n", "id\n7\n8\n", (), "--string-ids reads it as text"),
        ("a,b\np,q\n", "id,y\np,1.5\nq,2\n", ("--label", "y"), "is not a whole number"),
        ("a,b\np,q\n", "id,s\np,x\nq,\n", ("--split-column", "s"), "line 2, s: must be train"),
        ("a,b\np,q\n", "id,s,t,u\np,1,0,0\nq,1,0,1\n", MASKS, "line 3, s: masks are 0 and 1"),
        (
            "a,b\np,q\n",
            None,
            ("--features", "z*"),
            "has columns id, x, but not this one (found 'z*')",
        ),
        ("a,b\np,q\n", None, ("--split-ratio", "1,2"), "--split-ratio takes three shares"),
        ("a,b\np,q\n", None, ("--split-ratio", "1,2,3"), "needs labelled nodes: add --label"),
        ("a,b\np,q\n", None, ("--delimiter", "ab"), "--delimiter takes one ASCII character"),
        ("a,b\np,q,\n", None, (), "has 2: remove the delimiter at the end"),
        ("a,b\np,q\n# no\n", None, (), "--comment '#' skips lines that begin with it"),
        ("a,b\n7,-8\n", "id\n7\n", (), "line 2, b: ids are numbers from 0: --string-ids"),
        ("a;b;w\np;q;0,5\n", None, ("--weight", "w"), "is not a number (--decimal-comma: 0,5"),
        ("a,b\np,q\n", "id;x\np;0,5\nq;2\n", ("--features", "x"), "x: holds numbers with a comma"),
        ("a,b\np,q\n", 'id,x\np,"1,000"\n', ("--features", "x"), "or --categorical x (names)"),
        ("a,b\np,q\n", "id,y,t\np,u,1.2.2020\nq,,\n", TIMES, "line 2: t: is not a time such as"),
        ("a,b\n7,8\n0x9,8\n", "id\n7\n8\n9\n", (), "line 3: an edge ends at a node that is not"),
        ("a,b\n7,8\n", "id\n7\n9\n", (), "add it, or leave the edge out (found 8)"),
        pytest.param(LONG, "id\n7\n8\n", (), "line 3: is not a row of a table", id="long field"),
        ("", None, (), "holds no table"),
    ],
)
def test_bad_tables_are_refused(refused, tmp_path, edges, nodes, options, message):
    path = write(tmp_path / "e.csv", edges)
    table = write(tmp_path / "n.csv", nodes or "id,x\np,1\nq,2\n")
    given = ("--nodes", str(table), "--id", "id", *ENDS, *options)
    assert message in refused(path, "--format", "table", *given)


def test_columns_of_times_vectors_booleans_and_categories(made, refused, tmp_path):
    table = pa.table(
        {
            "id": [5, 3, 9, 4],
            "when": pa.array([4, 2, 1, 3], pa.timestamp("s")),
            "day": [-1.5, 2.0, 0.5, 9.0],
            "emb": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
            "new": [True, False, None, True],
            "zip": [10115, 80331, 10115, 20095],
            "y": [10, None, -1, 10],
        }
    )
    pq.write_table(table, tmp_path / "n.parquet")
    edges = write(tmp_path / "e.csv", "a,b\n5,3\n9,4\n")
    options = (*ENDS, "--nodes", 1, "--features", "emb,zip", "--categorical", "zip", "--label", "y")
    for column, split in (("when", [3, 0, 1, 2]), ("day", [1, 0, 2, 3])):
        path = made(
            edges,
            tmp_path / "n.parquet",
            *options,
            "--split-time",
            column,
            "--split-ratio",
            "1,1,1",
        )
        with GraphFile(path) as graph:
            found = graph.read_nodes(0, 4)
            assert graph.read_encoding().classes == ["-1", "10"]
        assert found.split[:, 0].tolist() == split
        assert found.original_ids.tolist() == [5, 3, 9, 4] and found.labels.tolist() == [
            1,
            -1,
            0,
            1,
        ]
        assert found.features[0].tolist() == [1, 2, 1, 0, 0]
    said = refused(edges, *ENDS, "--nodes", str(tmp_path / "n.parquet"), "--features", "when")
    assert "when: holds times, which can't be features" in said
    said = refused(edges, *ENDS, "--nodes", str(tmp_path / "n.parquet"), "--features", "new")
    assert "row 2, new: is missing" in said


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([[{"a": 1}, {"a": 2}]], "lists of numbers: store its parts as columns of their own"),
        ([[["a"], ["b"]]], "x: must hold lists of numbers"),
        ([[[1.0], [2.0]], [3.0]], "x: must hold lists of numbers (found 'double')"),
        ([[1.0, 2.0], [[3.0]]], "x: must hold lists of numbers (found 'double')"),
    ],
)
def test_columns_of_unsupported_types_are_refused(refused, tmp_path, columns, words):
    """Structs, lists of texts, lists in one file and numbers in another, and ids out of range."""
    parts, first = tmp_path / "n", 0
    parts.mkdir()
    for number, values in enumerate(columns):
        rows = {"id": list(range(first, first + len(values))), "x": values}
        pq.write_table(pa.table(rows), parts / f"{number}.parquet")
        first += len(values)
    nodes = [str(path) for path in sorted(parts.iterdir())]
    edges = write(tmp_path / "e.csv", "a,b\n0,1\n")
    assert words in refused(edges, *ENDS, "--nodes", *nodes, "--features", "x")
    pq.write_table(pa.table({"id": [Decimal(2) ** 64], "x": [1.0]}), tmp_path / "i.parquet")
    said = refused(edges, *ENDS, "--nodes", str(tmp_path / "i.parquet"), "--features", "x")
    assert "id: must hold whole numbers below 2^63" in said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (150, "unlike nearly all values: use --na 'one half' if it means a missing value"),
        (5_000, "unlike most values: use --na"),
    ],
)
def test_one_text_among_many_numbers_is_refused(made, tmp_path, capfd, number, words):
    """Even if there are more numbers than the largest number of categories."""
    edges = write(tmp_path / "e.csv", "a,b\n1,2\n")
    values = [f"{row / 8}" for row in range(number)]
    values[number // 2] = "one half"
    rows = "".join(f"{row},{value}\n" for row, value in enumerate(values))
    nodes = write(tmp_path / "n.csv", "id,x\n" + rows)
    given = [*ENDS, "--nodes", 1, "--features", "x"]
    columns = [*ENDS, "--nodes", str(nodes), "--features", "x"]
    assert main(["convert", str(edges), str(tmp_path / "g.h5"), *columns]) == 2
    said = capfd.readouterr().err
    assert f"n.csv: line {number // 2 + 2}, x: is not a number, {words}" in said
    made(edges, nodes, *given, "--na", "one half", "--missing", "zero")


def test_patterns_do_not_match_row_number_columns(made, tmp_path, capfd):
    edges = write(tmp_path / "e.csv", "a,b\np,q\n")
    nodes = write(tmp_path / "n.csv", "Unnamed: 0,id,x,\n0,p,1.5,\n1,q,2.5,\n")
    path = made(edges, nodes, *ENDS, "--nodes", 1, "--features", "*")
    with h5py.File(path) as file:
        assert file["nodes/features"][:].tolist() == [[1.5], [2.5]]
    assert "Unnamed: 0, column 4, which has no name" in capfd.readouterr().err


@pytest.mark.parametrize("options", [(), ("--missing", "mean"), ("--categorical", "x")])
def test_a_column_can_be_both_feature_and_label(made, tmp_path, options):
    edges = write(tmp_path / "e.csv", "a,b\n0,1\n1,2\n")
    nodes = write(tmp_path / "n.csv", "id,x\n0,4\n1,7\n2,4\n")
    asked = ("--id", "id", "--features", "x", "--label", "x", *options)
    with GraphFile(made(edges, *ENDS, "--nodes", 1, nodes, *asked)) as graph:
        found, encoding = graph.read_nodes(0, 3), graph.read_encoding()
    assert found.labels.tolist() == [0, 1, 0] and encoding.classes == ["4", "7"]
    one_hot = [[1, 0], [0, 1], [1, 0]]
    assert found.features.tolist() == (one_hot if "x" in options else [[4], [7], [4]])


def test_multiple_labels_and_regression_targets(made, tmp_path):
    nodes = write(tmp_path / "n.csv", "id,p,q,r\na,1,0,0.5\nb,,1,\nc,,,-2\n")
    edges = write(tmp_path / "e.csv", "a,b\na,b\n")
    path = made(edges, nodes, *ENDS, "--nodes", 1, "--label", "p,q", "--split-ratio", "1,1,0")
    with GraphFile(path) as graph:
        found = graph.read_nodes(0, 3)
        assert graph.multilabel and graph.read_encoding().classes == ["p", "q"]
    assert found.labels.tolist() == [[1, 0], [-1, 1], [-1, -1]]
    assert sorted(found.split[:2, 0]) == [1, 2] and found.split[2, 0] == 0
    path = made(edges, nodes, *ENDS, "--nodes", 1, "--label", "r", "--labels-as", "values")
    with GraphFile(path) as graph:
        assert graph.num_classes == 0
        np.testing.assert_array_equal(graph.read_nodes(0, 3).labels, np.float32([0.5, np.nan, -2]))


def test_masks_as_pandas_writes_them(made, tmp_path):
    edges = write(tmp_path / "e.csv", "a,b\np,q\n")
    text = "id,s,t,u\np,True,False,False\nq,False,False,True\nr,,,\n"
    nodes = write(tmp_path / "n.csv", text)
    with GraphFile(made(edges, nodes, *ENDS, "--nodes", 1, "--id", "id", *MASKS)) as graph:
        assert graph.read_nodes(0, 3).split.ravel().tolist() == [1, 3, 0]
    konect = write(tmp_path / "out.toy", "% asym unweighted\n1 2\n2 3\n")
    with GraphFile(made(konect)) as graph:
        assert graph.num_edges == 2


def test_decimal_commas_lists_and_missing_values(made, tmp_path, capfd):
    edges = write(tmp_path / "e.csv", "a,b\np,q\n")
    nodes = write(tmp_path / "n.csv", "id;x;c;y\np;0,5;u;NA\nq;1,5;?;r\n")
    options = (*ENDS, "--nodes", 1, "--label", "y", "--features")
    found = {}
    for columns, *others in (("x", "--decimal-comma"), ("x", "--no-decimal-comma"), ("c",)):
        path = made(edges, nodes, *options, columns, *others)
        with GraphFile(path) as graph:
            found[*others,] = graph.read_nodes(0, 2).features.tolist()
            assert graph.read_encoding().classes == ["NA", "r"]
    assert found["--decimal-comma",] == [[0.5], [1.5]]
    assert found["--no-decimal-comma",] == [[0, 5], [1, 5]]
    said = capfd.readouterr().err
    assert "y has the value NA: if this means a missing value, use --na NA" in said
    assert "c has the value ?: if" in said
    first = made(edges, nodes, *options, "c", "--na", "NA,?", "--missing", "zero")
    nodes = write(tmp_path / "m.csv", "id,c,y\np,?,NA\nq,u,r\n")
    later = made(edges, nodes, "--nodes", 1, "--like", str(first), out="h.h5")
    table = pa.table({"id": ["p", "q"], "c": ["?", "u"], "y": ["NA", "r"]})
    pq.write_table(table, tmp_path / "m.parquet")
    again = made(edges, tmp_path / "m.parquet", "--nodes", 1, "--like", str(first), out="i.h5")
    for path, features in ((first, [[1], [0]]), (later, [[0], [1]]), (again, [[0], [1]])):
        with GraphFile(path) as graph:
            rows = graph.read_nodes(0, 2)
            assert rows.features.tolist() == features and rows.labels.tolist() == [-1, 0]


def test_times_with_and_without_time_zones(made, tmp_path):
    times = ["2020-01-01T00:30:00+02:00", "2019-12-31T23:00:00Z", "2019-12-31 22:45", "2021-01-01"]
    edges = write(tmp_path / "e.csv", "a,b\n0,1\n")
    rows = "".join(f"{k},x,{time}\n" for k, time in enumerate(times))
    write(tmp_path / "n.csv", "id,y,t\n" + rows)
    table = pa.table({"id": range(4), "y": ["x"] * 4, "t": times})
    pq.write_table(table, tmp_path / "n.parquet")
    shares = ("--split-ratio", "2,1,1")
    for name in ("n.csv", "n.parquet"):
        path = made(edges, tmp_path / name, *ENDS, "--nodes", 1, *TIMES, *shares)
        with GraphFile(path) as graph:
            assert graph.read_nodes(0, 4).split.ravel().tolist() == [1, 2, 1, 3]


def test_each_table_has_its_own_delimiter(made, refused, tmp_path):
    edges = write(tmp_path / "e.csv", "a^b\np^q\n")
    nodes = write(tmp_path / "n.csv", "id,x\np,1\nq,2\n")
    options = (*ENDS, "--nodes", 1, "--id", "id", "--features", "x")
    assert names(made(edges, nodes, *options, "--delimiter", "^")) == ["p", "q"]
    assert "does it have another delimiter" in refused(edges, *ENDS)
    assert "a^b only (--delimiter C" in refused(edges, "--format", "table")


def test_ids_that_look_like_numbers(made, tmp_path):
    edges = write(tmp_path / "e.csv", "a,b\n007,7\n")
    assert names(made(edges, *ENDS)) == ["007", "7"]
    edges = write(tmp_path / "e.csv", "a,b\n17,7\n")
    with GraphFile(made(edges, *ENDS)) as graph:
        assert graph.names is None and graph.read_nodes(0, 2).original_ids.tolist() == [7, 17]
    assert names(made(edges, *ENDS, "--string-ids")) == ["17", "7"]
    edges = write(tmp_path / "e.csv", "a,b\n17.0,7.0\n")  # as pandas does beside missing ones
    with GraphFile(made(edges, *ENDS)) as graph:
        assert graph.names is None and graph.read_nodes(0, 2).original_ids.tolist() == [7, 17]
    assert names(made(edges, *ENDS, "--string-ids")) == ["17.0", "7.0"]
    spaced = write(tmp_path / "e.csv", "a, b, w\nann, bob, 1\nbob, eve x, 2\n")
    assert names(made(spaced, *ENDS, "--weight", "w")) == ["ann", "bob", "eve x"]
    spaced = write(tmp_path / "e.csv", " a , b \n ann , bob \n bob,eve x \n")
    assert names(made(spaced, *ENDS)) == ["ann", "bob", "eve x"]
    table = pa.table({"a": pa.array([1, 2]).cast(pa.decimal128(20, 0)), "b": [2, 3]})
    pq.write_table(table, tmp_path / "d.parquet")
    with GraphFile(made(tmp_path / "d.parquet", *ENDS)) as graph:
        assert graph.names is None and graph.read_nodes(0, 3).original_ids.tolist() == [1, 2, 3]
    bare = write(tmp_path / "f.csv", "# two people\nann,bob\nbob,eve\n")
    columns = ("--no-header", "--source", 1, "--target", 2)
    assert names(made(bare, *columns)) == ["ann", "bob", "eve"]


@pytest.mark.parametrize("form", ["u{}", "{}"])
def test_files_with_a_row_for_each_node_follow_the_table_of_nodes(made, refused, tmp_path, form):
    ids = [form.format(k) for k in (907, 11, 305)]
    edges, nodes = tmp_path / "edges.csv", tmp_path / "nodes.csv"
    edges.write_text(f"source,target\n{ids[0]},{ids[1]}\n{ids[2]},{ids[1]}\n")
    nodes.write_text("id,x\n" + "".join(f"{id},{k}\n" for k, id in enumerate(ids)))
    np.save(tmp_path / "p.npy", np.array([5.0, 6.0, 7.0]))
    array = ("--node-array", f"p={tmp_path / 'p.npy'}")
    with GraphFile(made(edges, nodes, "--nodes", "1", "--features", "x", *array)) as graph:
        assert graph.read_nodes(0, 3).named["p"].tolist() == [5, 6, 7]
        assert graph.read_rows(0, 3).indices.tolist() == [0, 2]
    np.save(tmp_path / "p.npy", np.zeros(4))
    said = refused(edges, "--nodes", str(nodes), "--features", "x", *array)
    assert "p.npy" in said and "more rows than there are nodes (3)" in said
    if form != "{}":
        assert "list the nodes in a table, --nodes TABLE" in refused(edges, *array)
