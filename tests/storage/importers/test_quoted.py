"""Values that span several lines, compared with Python's csv."""

from __future__ import annotations

import csv
import io
import random

import numpy as np
import pytest

from hpcgnn.cli.main import main
from hpcgnn.storage.importers import text
from hpcgnn.storage.importers.quoted import lines_of, rows_of
from hpcgnn.storage.read.graph_file import GraphFile

TEXTS = ("plain", "two\nlines", 'she said "no"\n\nand left', "a, b\n# c", "", "\n", 'end"\n"')


@pytest.mark.parametrize("piece", [1 << 20, 61])
def test_tables_with_multi_line_texts(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(text, "PIECE_BYTES", piece)
    rng = random.Random(0)
    rows = [(f"n{k}\nof {k % 3}", rng.choice(TEXTS), rng.random()) for k in range(60)]
    edges = [(rng.choice(rows)[0], rng.choice(rows)[0]) for _ in range(200)]
    for name, header, content in (
        ("n.csv", ("id", "a\nnote", "x"), rows),
        ("e.csv", ("from", "to"), edges),
    ):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *content])
    options = ("--source", "from", "--target", "to", "--id", "id", "--features", "x")
    files = [str(tmp_path / name) for name in ("e.csv", "g.h5", "n.csv")]
    assert main(["convert", *files[:2], "--nodes", files[2], *options]) == 0
    with GraphFile(tmp_path / "g.h5") as graph:
        names = graph.names.texts(0, 60)
        slab, nodes = graph.read_rows(0, 60), graph.read_nodes(0, 60)
    assert names == [name for name, _, _ in rows]
    np.testing.assert_allclose(nodes.features[:, 0], [x for *_, x in rows], rtol=1e-6)
    ends = zip(slab.indices, np.repeat(np.arange(60), np.diff(slab.indptr)), strict=True)
    assert sorted((names[a], names[b]) for a, b in ends) == sorted(edges)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('id,x\n"a\nb",1\nq,\n', "line 4, x: is missing"),
        ('id,x\n"a\nb",1\n"a\nb",2\n', "line 4: is listed twice"),
        ('id,x\n"a\n\nb",1\nq\n', "line 5: has 1 column, but the first line has 2"),
        ('id,x\n"a\nb"c,1\nq,2\n', "line 2: has a quote that is not closed"),
        ('id,x\np,"1\nq,2\nr,"3\n', "line 2: has a quote that is not closed"),
    ],
)
def test_line_numbers_count_multi_line_texts(refused, tmp_path, table, message):
    (tmp_path / "e.csv").write_text("source,target\nq,q\n")
    (tmp_path / "n.csv").write_text(table)
    options = ("--nodes", str(tmp_path / "n.csv"), "--id", "id", "--features", "x")
    assert message in refused(tmp_path / "e.csv", *options)


def test_rows_are_split_as_by_pythons_csv():
    rng = random.Random(1)
    for _ in range(300):
        rows = [[rng.choice(TEXTS) + "x" for _ in range(3)] for _ in range(5)]
        out = io.StringIO()
        csv.writer(out, delimiter=";", lineterminator="\n").writerows(rows)
        data = out.getvalue().encode()
        assert rows_of(data, ";") == 5
        found = [(number, line.decode()) for number, line in lines_of(data, ";") if line]
        assert [next(csv.reader([line], delimiter=";")) for _, line in found] == rows
        ends = np.cumsum([0] + [line.count("\n") + 1 for _, line in found])
        assert [number for number, _ in found] == ends[:-1].tolist()
