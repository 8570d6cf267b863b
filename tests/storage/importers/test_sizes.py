"""False sizes and endless files: refused in one line, soon, and in little memory."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import Archive
from hpcgnn.storage.importers.csr import sparse_rows
from hpcgnn.storage.importers.opening import check_inflation, open_file
from hpcgnn.storage.importers.planetoid import load_pickle


def packed(path: Path, unit: bytes, mib: int, head: bytes = b"") -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(mib):
            file.write(unit * ((1 << 20) // len(unit)))
    return path


HEAD = b"%%MatrixMarket matrix coordinate pattern general\n"


@pytest.mark.parametrize(
    ("name", "unit", "head", "message"),
    [
        ("g.txt.gz", b"\n", b"", "hold no data"),
        ("g.txt.gz", b"\r", b"0 1\n", "hold no data"),
        ("g.graph.gz", b"\n", b"2 1\n2\n1\n", "hold no data"),
        ("g.mtx.gz", b"\n", HEAD + b"3 3 1\n1 2\n", "hold no data"),
        ("g.mtx.gz", b"%\n", HEAD, "has no sizes in its first"),
    ],
)
def test_compressed_lines_without_data_are_refused(refused, tmp_path, name, unit, head, message):
    assert message in refused(packed(tmp_path / name, unit, 13, head))


def test_decompression_bombs_are_refused():
    check_inflation(Path("g.gz"), 1 << 10, 1 << 30)
    check_inflation(Path("g.gz"), 1 << 30, 1 << 38)
    with pytest.raises(InputError, match=r"g\.gz: unpacks to more than 500 times its size"):
        check_inflation(Path("g.gz"), 1 << 10, (1 << 30) + 1)


def header(shape: str, version: int = 1, length: int | None = None) -> bytes:
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = (len(text) if length is None else length).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(str((1,) * 70)) + bytes(8), "must have at most 8 dimensions (found 70)"),
        (header("(2, 2)") + bytes(40), "continues after the array of shape (2, 2)"),
        (header("(2, 3)") + bytes(40), "is truncated: its header announces shape (2, 3)"),
        (header("(5, 1000000000000000000000, 0)"), "must be a plain array of numbers"),
        (header("(2, 3)", 2, 3 << 30) + bytes(40), "a header of 3221225472 bytes"),
    ],
)
def test_false_headers_are_refused(refused, tmp_path, content, message):
    (tmp_path / "e.npy").write_bytes(content)
    assert message in refused(tmp_path / "e.npy")
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
        archive.writestr("edge_index.npy", content)
    assert message in refused(tmp_path / "g.npz")
    (tmp_path / "e.txt").write_text("0 1\n")
    assert message in refused(tmp_path / "e.txt", "--features", str(tmp_path / "e.npy"))


def test_implausible_numbers_of_nodes_are_refused(refused, tmp_path):
    (tmp_path / "g.txt").write_text("0 1\n")
    said = refused(tmp_path / "g.txt", "--num-nodes", 2 * 10**9)
    assert "announces 2000000000 nodes but has 1 edges" in said


def test_a_feature_row_wider_than_memory_is_refused(tmp_path):
    np.savez(tmp_path / "g.npz", p=[0, 999, 999], i=np.zeros(999, int), d=np.zeros(999))
    archive = Archive(tmp_path / "g.npz")
    rows = sparse_rows(archive["p"], archive["i"], archive["d"], 1 << 30, limit=999 * 16 - 1)
    with pytest.raises(InputError, match="row 0 takes more than --memory allows"):
        list(rows)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            b"\x80\x02}("
            + b"".join(b"J" + struct.pack("<i", k) + b"h\x01" for k in range(99))
            + b"u.",
            "refers 99 times to objects that it already holds",
        ),
        (b"]" + b"2" * 50 + b".", "operation DUP is not allowed"),
        (b"cnumpy\nndarray\n\x81.", "is not a pickle"),
        (
            b"cnumpy\nndarray\n(tR(I1\n(I9\ntcnumpy\ndtype\n(S'i8'\ntR(I3\nS'<'\ntbI00\n"
            b"I99999999999\ntb.",
            "its data are not bytes",
        ),
    ],
)
def test_pickles_that_expand_are_refused(tmp_path, stored, message):
    (tmp_path / "p").write_bytes(stored)
    with pytest.raises(InputError, match=message):
        load_pickle(tmp_path / "p", 1 << 30)


def test_a_pickled_dictionary_is_read(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps({0: [1]}, 2))
    assert load_pickle(tmp_path / "p", 1 << 30) == {0: [1]}


def test_pipes_are_refused_at_once(refused, tmp_path):
    for name in ("g.txt", "g.npz", "g.npy", "g.graph", "g.mtx"):
        os.mkfifo(tmp_path / name)
        assert f"{name}: is a named pipe" in refused(tmp_path / name)
    (tmp_path / "e.txt").write_text("0 1\n")
    options = ("--labels", str(tmp_path / "g.npy"))
    assert "g.npy: is a named pipe" in refused(tmp_path / "e.txt", *options)
    with pytest.raises(InputError, match="is a pipe"), open_file(Path(os.devnull)):
        pass


def test_file_names_that_are_not_utf_8_are_accepted(convert, refused, tmp_path, capfd):
    source = Path(os.fsdecode(bytes(tmp_path) + b"/g\xff.npz"))
    with source.open("wb") as file:
        np.savez(file, edge_index=[[0, 1, 2], [1, 2, 0]], **{"\x1b[31m": [1]})
    assert convert(source).counts.num_edges == 3
    said = capfd.readouterr().err
    assert "\x1b" not in said and r"ignored: \x1b[31m" in said
    assert "File name too long" in refused(tmp_path / ("n" * 300 + ".txt"))
