"""Cells of text tables: separators, and cells unlike those that determined the column's type."""

from __future__ import annotations

from pathlib import Path

import pytest

ENDS = ("--source", "a", "--target", "b")
ROWS, WIDE = 1500, "w" * 800  # together more than the first MiB, which determines the types


@pytest.fixture
def edges(tmp_path) -> Path:
    path = tmp_path / "e.csv"
    path.write_text("a,b\n0,1\n2,3\n")
    return path


@pytest.mark.parametrize(
    ("usual", "odd", "options", "words"),
    [
        ("[1 2]", "[1 x]", ["--features", "x"], "x: is not a list of numbers (found '[1 x]')"),
        (
            "2021-05-31",
            "soon",
            ["--label", "y", "--split-time", "x", "--split-ratio", "1,1,1"],
            "x: is not a time such as 2021-05-31",
        ),
        ("0.5", "half", ["--features", "x"], "x: is not a number (found 'half')"),
    ],
)
def test_a_late_cell_of_another_kind_is_named(edges, refused, tmp_path, usual, odd, options, words):
    rows = [f"{k},{usual if k < ROWS - 1 else odd},{k % 2},{WIDE}" for k in range(ROWS)]
    (tmp_path / "n.csv").write_text("\n".join(["id,x,y,z", *rows, ""]))
    said = refused(edges, *ENDS, "--nodes", str(tmp_path / "n.csv"), *options)
    assert words in said and f"line {ROWS + 1}" in said


def test_any_number_of_spaces_separates_cells(convert, edges, tmp_path):
    (tmp_path / "n.csv").write_text("id,x,y\n0,0.5,1\n1,1.5,0\n2,2.5,1\n3,3.5,0\n")
    (tmp_path / "n.txt").write_text("id x y\n 0  0.5 \t1\n1 1.5 0 \n2\t2.5   1\n3 3.5 0\n")
    found = [
        convert(edges, *ENDS, "--nodes", str(tmp_path / name), "--features", "x", "--label", "y")
        for name in ("n.csv", "n.txt")
    ]
    for graph in found:
        assert graph.nodes.features[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5]
        assert graph.nodes.labels.tolist() == [1, 0, 1, 0]
