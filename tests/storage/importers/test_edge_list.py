"""Edge lists as text and as arrays."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

SPARSE = [(10**18, 7), (7, 3), (3, 10**18), (7, 3), (3, 3)]
DENSE = [(0, 1), (2, 1), (4, 0), (2, 1), (3, 3)]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("delimiter", [" ", "\t", ",", ";", ", "])
def test_ids_of_any_size_are_kept(convert, tmp_path, delimiter):
    text = "# a comment\n\n% another\n" + "".join(f"{a}{delimiter}{b}\n" for a, b in SPARSE)
    graph = convert(write(tmp_path / "g.txt", text))
    assert graph.nodes.original_ids.tolist() == [3, 7, 10**18]
    assert graph.named_edges == sorted(SPARSE)
    assert graph.slab.weight is None


def test_rows_are_not_renamed(convert, tmp_path):
    path = write(tmp_path / "g.txt", "".join(f"{a} {b}\n" for a, b in DENSE))
    graph = convert(path)
    assert graph.counts.num_nodes == 5 and graph.nodes.original_ids is None
    assert graph.edges == sorted(DENSE)
    wider = convert(path, "--num-nodes", 9)
    assert wider.counts.num_nodes == 9 and wider.edges == sorted(DENSE)
    assert convert(path, "--reverse").edges == sorted((b, a) for a, b in DENSE)


def test_windows_lines_byte_order_mark_and_no_last_newline(convert, tmp_path):
    (tmp_path / "g.txt").write_bytes(b"\xef\xbb\xbf0 1\r\n1 2\r\n2 0")
    assert convert(tmp_path / "g.txt").edges == [(0, 1), (1, 2), (2, 0)]


def test_gzip_and_several_files(convert, tmp_path):
    first = write(tmp_path / "part-0.txt", "0 1\n")
    (tmp_path / "part-1.txt.gz").write_bytes(gzip.compress(b"1 2\n") + gzip.compress(b"2 0\n"))
    assert convert(first, tmp_path / "part-1.txt.gz").edges == [(0, 1), (1, 2), (2, 0)]


def test_columns_by_number_and_by_name(convert, refused, tmp_path):
    path = write(tmp_path / "g.csv", 'when,"to",from,w\n7,1,0,0.5\n8,2,1,2e3\n')
    by_name = convert(path, "--columns", "from,to,w")
    by_number = convert(path, "--columns", "3,2,4", "--skip-lines", 1)
    for graph in (by_name, by_number):
        assert graph.weights == {(0, 1): 0.5, (1, 2): 2000}
    assert convert(path, "--columns", "from,to,w", "--no-weights").slab.weight is None
    assert "has columns when, to, from, w, but not this one (found 'nowhere')" in refused(
        path, "--columns", "from,nowhere"
    )
    assert "line 2: has columns 1 to 4" in refused(path, "--columns", "1,5", "--skip-lines", "1")
    assert "with column names" in refused(path, "--columns", f"1,{'9' * 5000}", "--skip-lines", "1")
    assert convert(path).edges == [(0, 1), (1, 2)]  # the columns have these names


def test_agrees_with_networkx(convert, tmp_path):
    truth = nx.gnm_random_graph(97, 400, seed=5, directed=True)
    nx.write_edgelist(truth, tmp_path / "g.edgelist", data=False)
    graph = convert(tmp_path / "g.edgelist", "--num-nodes", 97)
    assert graph.edges == sorted(truth.edges)
    for node in truth:
        first, last = graph.slab.indptr[node : node + 2]
        assert graph.slab.indices[first:last].tolist() == sorted(truth.predecessors(node))


@pytest.mark.parametrize("dtype", ["int16", "int64", "uint64", ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", ["[E, 2]", "[2, E]"])
def test_edges_as_one_array(convert, tmp_path, dtype, order, shape):
    pairs = np.array(DENSE, dtype)
    np.save(tmp_path / "e.npy", np.asarray(pairs if shape == "[E, 2]" else pairs.T, order=order))
    assert convert(tmp_path / "e.npy").edges == sorted(DENSE)


def test_pair_of_arrays_with_weights(convert, refused, tmp_path):
    for name, k in (("s", 0), ("d", 1)):
        np.save(tmp_path / f"{name}.npy", np.array(SPARSE)[[0, 1, 4], k])
    np.save(tmp_path / "w.npy", np.array([1, 2, 3]))
    pair = (tmp_path / "s.npy", tmp_path / "d.npy")
    graph = convert(*pair, "--edge-weights", str(tmp_path / "w.npy"))
    assert graph.named_edges == sorted([SPARSE[0], SPARSE[1], SPARSE[4]])
    assert graph.weights == {(2, 1): 1, (1, 0): 2, (0, 0): 3}
    np.save(tmp_path / "w.npy", np.ones(2))
    assert "same number of edges" in refused(*pair, "--edge-weights", str(tmp_path / "w.npy"))
    np.save(tmp_path / "d.npy", np.arange(5))
    assert "d.npy" in refused(*pair)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 x\n", "line 2: is not an integer (found 'x')"),
        ("0 1\n# c\n\n1 2.5\n", "line 4: is not an integer (found '2.5')"),
        ("0 10\n7 007\n", "line 2: begins with 0: --string-ids --source 1 --target 2 keeps 007"),
        ("0 1\n0 -3\n", "line 2: destination must not be negative (found -3)"),
        ("0 1\n99999999999999999999 3\n", "line 2: does not fit a signed 64-bit integer"),
        ("0 1\n0\n", "line 2: has 1 columns, not 2"),
        ("0 1\n0 1 2\n", "line 2: has 3 columns, not 2"),
        ("0 1\n0,1\n", "line 2: has 1 columns"),
        ("0 1\n\x000 1\n", "line 2: is not an integer"),
        ("0 ١\n", "line 1: is not an integer"),
        ("", "holds no edges"),
        ("# nothing\n", "holds no edges"),
    ],
)
def test_bad_text_is_refused(refused, tmp_path, text, message):
    found = refused(write(tmp_path / "g.txt", text))
    assert message in found and "g.txt" in found


@pytest.mark.parametrize("weight", ["nan", "inf", "1e39", "x", "1_0", ""])
def test_bad_weights_are_refused(refused, tmp_path, weight):
    path = write(tmp_path / "g.txt", f"0,1,1\n1,2,{weight}\n")
    assert "g.txt: line 2: " in refused(path, "--columns", "1,2,3")


@pytest.mark.slow
def test_ids_out_of_range_name_the_line_far_down(refused, tmp_path):
    lines = [f"{k % 100} {k % 7}\n" for k in range(1_000_000)]
    lines[876_543] = "5 100\n"
    path = write(tmp_path / "g.txt", "# head\n" + "".join(lines))
    assert "line 876545: destination must be below 100 (found 100)" in refused(
        path, "--num-nodes", 100
    )


def test_damaged_files_are_refused(refused, tmp_path):
    whole = gzip.compress("".join(f"{k} {k + 1}\n" for k in range(50_000)).encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.txt.gz").write_bytes(whole[:500] + b"\0\1\2\3" * 20 + whole[580:])
    for name in ("cut.txt.gz", "bad.txt.gz"):
        assert f"{name}: is truncated or damaged" in refused(tmp_path / name)
    assert "no such file" in refused(tmp_path / "none.txt")
    assert "is a folder" in refused(tmp_path, "--format", "edges")
    (tmp_path / "long.txt").write_bytes(b"1" * (20 << 20))
    assert "line 1: is longer than" in refused(tmp_path / "long.txt")


@dataclass
class Evil:
    """Leaves a file behind when it is unpickled."""

    path: Path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_objects_in_arrays_are_not_unpickled(refused, tmp_path):
    evil = Evil(tmp_path / "evil")
    np.save(tmp_path / "e.npy", np.array([[evil, evil]]), allow_pickle=True)
    assert "Python objects" in refused(tmp_path / "e.npy")
    assert not evil.path.exists()


def test_two_edges_are_read_as_sources_and_destinations(convert, tmp_path):
    np.save(tmp_path / "e.npy", np.array([[0, 1], [1, 2]]))
    assert convert(tmp_path / "e.npy").edges == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.array([[0, 1], [2, 3], [4, -1]]),
            "edge 2: destination must not be negative (found -1)",
        ),
        (np.array([[0.0, 1.5], [1, 2], [2, 3]]), "must hold integers (found 1.5)"),
        (np.array([[0, np.nan], [1, 2], [2, 3]]), "must not be negative"),
        (np.array([[0, 2**63], [1, 2], [2, 3]], np.uint64), "does not fit"),
        (np.zeros((3, 3), int), "must have shape [2, E] or [E, 2] (found (3, 3))"),
        (np.zeros(4, int), "must have shape"),
        (np.zeros((4, 2), complex), "must hold numbers"),
        (np.zeros((4, 2), "S4"), "must hold numbers"),
        (np.zeros((0, 2), int), "holds no edges"),
    ],
)
def test_bad_arrays_are_refused(refused, tmp_path, array, message):
    np.save(tmp_path / "e.npy", array)
    assert message in refused(tmp_path / "e.npy")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{'descr':'<i8','fortran_order':False,'shape':(2,1000000000000000)}", "is truncated"),
        (b"{'descr':'<i8','fortran_order':False,'shape':(2,-4)}", "plain array"),
        (b"{'descr':'<i8','fortran_order':False,'shape':" + b"(" * 900, "is not a NumPy array"),
        (b"__import__('os').abort()", "is not a NumPy array"),
        (b"{'descr':[('a','<i8')],'fortran_order':False,'shape':(2,2)}", "plain array"),
    ],
)
def test_false_array_headers_are_refused(refused, tmp_path, header, message):
    header = header + b" " * (63 - len(header) % 64 + 54) + b"\n"
    out = io.BytesIO()
    out.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(32))
    (tmp_path / "e.npy").write_bytes(out.getvalue())
    assert message in refused(tmp_path / "e.npy")


def test_truncated_arrays_are_refused(refused, tmp_path):
    np.save(tmp_path / "e.npy", np.zeros((2, 1000), int))
    whole = (tmp_path / "e.npy").read_bytes()
    for length in (0, 5, 40, 200, len(whole) - 1):
        (tmp_path / "e.npy").write_bytes(whole[:length])
        assert "e.npy" in refused(tmp_path / "e.npy")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_wrong_line_is_shown_as_it_was_written(refused, tmp_path, encoding):
    path = tmp_path / "g.txt"
    path.write_bytes("1 2\n3 Genève\n".encode(encoding))
    assert "line 2" in (line := refused(path)) and "Genève" in line
