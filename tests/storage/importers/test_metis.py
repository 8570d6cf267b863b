"""METIS .graph files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

# The examples of the METIS manual, figure 2: one graph, written in four ways.
EDGES = {
    (1, 2): 1,
    (1, 3): 2,
    (1, 5): 1,
    (2, 3): 2,
    (2, 4): 1,
    (3, 4): 2,
    (3, 5): 3,
    (4, 6): 2,
    (4, 7): 5,
    (5, 6): 2,
    (6, 7): 6,
}
PLAIN = "7 11\n5 3 2\n1 3 4\n5 4 2 1\n2 3 6 7\n1 3 6\n5 4 7\n6 4\n"
WEIGHTED = (
    "7 11 001\n5 1 3 2 2 1\n1 1 3 2 4 1\n5 3 4 2 2 2 1 2\n2 1 3 2 6 2 7 5\n1 1 3 3 6 2\n"
    "5 2 4 2 7 6\n6 6 4 5\n"
)
BOTH = (
    "7 11 011\n4 5 1 3 2 2 1\n2 1 1 3 2 4 1\n5 5 3 4 2 2 2 1 2\n3 2 1 3 2 6 2 7 5\n1 1 1 3 3 6 2\n"
    "6 5 2 4 2 7 6\n2 6 6 4 5\n"
)
MANY = (
    "7 11 010 3\n1 2 0 5 3 2\n0 2 2 1 3 4\n4 1 1 5 4 2 1\n2 2 3 2 3 6 7\n1 1 1 1 3 6\n"
    "2 2 1 5 4 7\n1 2 1 6 4\n"
)


def truth() -> dict[tuple[int, int], int]:
    out = {(a - 1, b - 1): w for (a, b), w in EDGES.items()}
    return out | {(b, a): w for (a, b), w in out.items()}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text", [PLAIN, MANY, "% c\n%\n" + PLAIN.replace("\n1 3 4", "\n% c\n1 3 4")]
)
def test_an_unweighted_graph(convert, tmp_path, text):
    graph = convert(write(tmp_path / "g.graph", text))
    assert graph.edges == sorted(truth()) and graph.slab.weight is None


@pytest.mark.parametrize("text", [WEIGHTED, BOTH, WEIGHTED.replace("001", "1")])
def test_weighted_graphs(convert, tmp_path, text):
    path = write(tmp_path / "g.graph", text)
    assert convert(path).weights == truth()
    assert convert(path, "--no-weights").slab.weight is None


def test_isolated_nodes_blank_ends_and_gzip(convert, tmp_path):
    text = "5 1\n\n4\n  \n2\r\n\n\n\n"
    (tmp_path / "g.graph.gz").write_bytes(gzip.compress(text.encode()))
    graph = convert(tmp_path / "g.graph.gz")
    assert graph.counts.num_nodes == 5 and graph.edges == [(1, 3), (3, 1)]
    assert convert(write(tmp_path / "h.graph", "2 1\n2\n1")).edges == [(0, 1), (1, 0)]


@pytest.mark.parametrize("name", ["4elt", "rgg_n_2_15_s0"])
def test_graphs_distributed_with_metis(convert, data, name):
    lines = (data / "metis" / f"{name}.graph").read_text().split("\n")
    number, edges = map(int, lines[0].split())
    rows = [sorted(int(word) - 1 for word in line.split()) for line in lines[1 : number + 1]]
    graph = convert(data / "metis" / f"{name}.graph")
    assert graph.counts.num_edges == 2 * edges
    assert (np.diff(graph.slab.indptr) == [len(row) for row in rows]).all()
    assert graph.slab.indices.tolist() == [node for row in rows for node in row]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("% only\n", "is empty"),
        ("7\n", "line 1: must be: nodes edges"),
        ("a b\n", "line 1: is not an integer (found 'a')"),
        ("3 1 2\n2\n1\n\n", "line 1: must be"),
        ("0 0\n", "line 1: must be"),
        ("-2 1\n", "line 1: must be"),
        ("2 1 001 -1\n", "line 1: must be"),
        ("1000000000000000 1\n2\n1\n", "announces 1000000000000000 nodes but has 2 edges"),
        ("4 2\n2\n3\n4\n1\n", "edges must be listed at both ends"),
        ("3 2 001\n2 5\n1 5 3 1\n2 2\n", "lists node 3 more often, or with another"),
        ("3 2\n2 3\n1 1\n\n", "edges must be listed at both ends"),
        ("99999999999999999999 1\n2\n", "line 1: does not fit"),
        ("3 2\n2\n1 3\n", "has lines for only 2 of 3 nodes"),
        ("2 1\n2\n1\n1\n", "line 4: follows the last node"),
        ("% c\n2 1\n2\n%\n3\n", "line 5: neighbours are numbered 1 .. 2 (found 3)"),
        ("2 1\n2\n0\n", "line 3: neighbours are numbered 1 .. 2 (found 0)"),
        ("2 1\n2\n-1\n", "line 3: must hold non-negative integers (found '-1')"),
        ("2 1\n2\n% c\n1.0\n", "line 4: must hold non-negative integers"),
        ("2 1\n2\n1 x\n", "line 3: must hold non-negative integers (found '1 x')"),
        ("2 1\n2\n1000000000000000000000\n", "line 3: has a number of 22 digits"),
        ("2 5\n2\n1\n", "lists 2 neighbours, but its header announces 5 edges"),
        ("2 1 001\n2 3\n1\n", "line 3: has too few numbers"),
        ("2 1 010 2\n1 1 2\n1\n", "line 3: has too few numbers"),
    ],
)
def test_bad_files_are_refused(refused, tmp_path, text, message):
    found = refused(write(tmp_path / "g.graph", text))
    assert message in found and "g.graph" in found
