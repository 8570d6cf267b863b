"""MatrixMarket files, compared with SciPy's reader."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

HEAD = "%%MatrixMarket matrix coordinate real general\n"


@pytest.mark.parametrize("field", ["real", "integer", "pattern"])
@pytest.mark.parametrize("symmetry", ["general", "symmetric", "skew-symmetric"])
def test_agrees_with_scipy(convert, tmp_path, field, symmetry):
    rng = np.random.default_rng(6)
    matrix = np.rint(9 * sp.random_array((13, 13), density=0.3, rng=rng).toarray())
    if symmetry != "general":
        matrix = matrix + matrix.T if symmetry == "symmetric" else matrix - matrix.T
    if field == "pattern" and symmetry == "skew-symmetric":
        pytest.skip("not part of the format")
    kind = "integer" if field == "integer" else "real"
    values = sp.coo_array(matrix.astype(int if kind == "integer" else float))
    path = tmp_path / "g.mtx"
    scipy.io.mmwrite(path, values, comment="made here", field=field, symmetry=symmetry)
    graph = convert(path)
    assert graph.counts.num_nodes == 13
    assert (graph.matrix == scipy.io.mmread(path).toarray()).all()
    assert (graph.slab.weight is None) == (field == "pattern")
    (tmp_path / "g.mtx.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert convert(tmp_path / "g.mtx.gz", "--no-weights").edges == graph.edges


def test_blank_lines_and_isolated_nodes(convert, tmp_path):
    (tmp_path / "g.mtx").write_text(HEAD.upper() + "% c\n\n  4 4 2\n\n% d\n1 3 .5\n\n3 3 1e2")
    assert convert(tmp_path / "g.mtx").weights == {(0, 2): 0.5, (2, 2): 100}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file ends in its header"),
        ("1 2\n", "line 1: must start with %%MatrixMarket"),
        ("%%MatrixMarket matrix array real general\n2 2\n", "line 1: must be coordinate"),
        ("%%MatrixMarket matrix coordinate complex general\n", "line 1: must be coordinate"),
        ("%%MatrixMarket matrix coordinate real hermitian\n", "line 1: must be coordinate"),
        (HEAD, "line 2: the file ends in its header"),
        (HEAD + "% c\n3 3\n", "line 3: must be three sizes"),
        (HEAD + "3 -3 1\n", "line 2: must be three sizes"),
        (HEAD + "3 4 1\n", "line 2: a graph is a square matrix (found (3, 4))"),
        (HEAD + "0 0 0\n", "line 2: a graph is a square matrix"),
        (HEAD + "3 3 1\n0 1 1\n", "line 3: i lies in 1 .. 3 (found 0)"),
        (HEAD + "3 3 2\n1 1 1\n%\n1 4 1\n", "line 5: j lies in 1 .. 3 (found 4)"),
        (HEAD + "3 3 1\n1 1\n", "line 3: has 2 columns, not 3"),
        (HEAD + "3 3 1\n1 1 x\n", "line 3: is not a number"),
        (HEAD + "3 3 1\n1 1 nan\n", "line 3: weight must be a finite float32"),
        (HEAD + "3 3 2\n1 1 1\n", "has only 1 entries but its header announces 2"),
        (HEAD + "3 3 1\n1 1 1\n2 2 2\n", "has more entries but its header announces 1"),
        (
            HEAD + "1000000000000000 1000000000000000 1\n1 1 1\n",
            "announces 1000000000000000 nodes but has 1 edges",
        ),
        (HEAD + "9" * 40 + " " + "9" * 40 + " 1\n1 1 1\n", "line 2: a graph is a square matrix"),
        (HEAD + "%" * 100_000 + "\n", "line 2: longer than any header line"),
    ],
)
def test_bad_files_are_refused(refused, tmp_path: Path, text, message):
    (tmp_path / "g.mtx").write_text(text)
    found = refused(tmp_path / "g.mtx")
    assert message in found and "g.mtx" in found
