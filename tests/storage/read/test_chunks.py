"""Chunks that hold another size than they claim, with correct checksums."""

from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

from hpcgnn.cli import main
from hpcgnn.errors import InputError
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.write import atomic
from tests.storage.files import graph_content
from tests.storage.write.test_graph_writer import write

ROWS, WIDTH = 9, 6  # of the features of `graph_content`
BYTES = ROWS * WIDTH * 4


def checked(data: bytes) -> bytes:
    """Return the data with the checksum that HDF5 appends."""
    with h5py.File("any", "w", driver="core", backing_store=False) as file:
        shape = (len(data),)
        dataset = file.create_dataset("a", shape, "u1", chunks=shape, fletcher32=True)
        dataset[...] = np.frombuffer(data, np.uint8)
        return dataset.id.read_direct_chunk((0,))[1]


def forge(path: Path, chunk: bytes, *, mask: int = 0, filters: tuple[int, ...] = ()) -> Path:
    """Write a graph whose features are this one chunk."""
    write(path, graph_content(), [0, 9])
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_chunk((ROWS, WIDTH))
    for number in filters:
        plan.set_filter(number, h5z.FLAG_OPTIONAL, (4,) if number == h5z.FILTER_SHUFFLE else (3,))
    plan.set_fletcher32()
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        del file["nodes/features"]
        space = h5s.create_simple((ROWS, WIDTH))
        made = h5d.create(file["nodes"].id, b"features", h5t.NATIVE_FLOAT, space, plan)
        made.write_direct_chunk((0, 0), chunk, mask)
    return path


GZIP = (h5z.FILTER_DEFLATE,)
SHUFFLED = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE)


@pytest.mark.parametrize(
    ("chunk", "mask", "filters", "words"),
    [
        (bytes(20), 1, (), f"the chunk at row 0 doesn't hold {BYTES} B"),
        (checked(bytes(BYTES - 4)), 0, (), f"doesn't hold {BYTES} B"),
        (checked(bytes(BYTES + 4)), 0, (), f"doesn't hold {BYTES} B"),
        (bytes(BYTES), 1, (), f"doesn't hold {BYTES} B"),
        (checked(zlib.compress(bytes(BYTES - 4))), 0, GZIP, f"doesn't unpack to {BYTES} B"),
        (checked(zlib.compress(bytes(BYTES - 4))), 0, SHUFFLED, f"doesn't unpack to {BYTES} B"),
        (checked(zlib.compress(bytes(BYTES + 4))), 0, GZIP, f"doesn't unpack to {BYTES} B"),
        (checked(zlib.compress(bytes(BYTES))[:-6]), 0, GZIP, f"doesn't unpack to {BYTES} B"),
        (checked(b"no gzip"), 0, GZIP, f"doesn't unpack to {BYTES} B"),
        (zlib.compress(bytes(BYTES)), 2, GZIP, f"doesn't hold {BYTES} B"),
        (checked(bytes(BYTES - 4)), 1, GZIP, f"doesn't hold {BYTES} B"),
        (checked(bytes(BYTES)), 0, (h5z.FILTER_SHUFFLE,), "filters that this package doesn't use"),
        (checked(bytes(BYTES)), 1, (h5z.FILTER_LZF,), "filters that this package doesn't use"),
    ],
)
def test_a_chunk_of_another_size_is_refused(tmp_path, chunk, mask, filters, words):
    path = forge(tmp_path / "g.h5", chunk, mask=mask, filters=filters)
    with GraphFile(path) as graph, pytest.raises(InputError, match=words) as caught:
        graph.read_nodes(0, ROWS)
    assert f"{path}: nodes/features: " in str(caught.value)


@pytest.mark.parametrize(
    ("chunk", "mask", "filters"),
    [
        (checked(bytes(BYTES)), 0, ()),
        (checked(zlib.compress(bytes(BYTES))), 0, GZIP),
        (checked(bytes(BYTES)), 1, GZIP),  # without gzip, as HDF5 does if it doesn't pay
    ],
)
def test_valid_chunks_are_read(tmp_path, chunk, mask, filters):
    path = forge(tmp_path / "g.h5", chunk, mask=mask, filters=filters)
    with GraphFile(path) as graph:
        for low in (0, 3):
            assert not graph.read_nodes(low, ROWS).features.any()


def test_a_small_chunk_that_decompresses_to_too_much_is_refused(tmp_path, monkeypatch):
    """Nor does the library decompress more than the chunk may hold."""
    path = forge(tmp_path / "g.h5", checked(zlib.compress(bytes(1 << 20))), filters=GZIP)
    asked, make = [], zlib.decompressobj

    class Recorder:
        def __init__(self) -> None:
            self.stream = make()
            self.unconsumed_tail, self.eof = b"", False

        def decompress(self, data: bytes, limit: int) -> bytes:
            asked.append(limit)
            return self.stream.decompress(data, limit)

    monkeypatch.setattr("hpcgnn.storage.read.chunks.zlib.decompressobj", Recorder)
    with GraphFile(path) as graph, pytest.raises(InputError, match="doesn't unpack"):
        graph.read_nodes(0, ROWS)
    assert asked == [BYTES + 1]


@pytest.mark.parametrize(
    ("rows", "chunk", "words"),
    [
        (1 << 31, 1, "claims to have 2147483648 chunks in a file of"),  # HDF5 looks for each one
        (9, 1 << 23, "has chunks of 33554432 B for 36 B of data"),
        (9, 1 << 27, "has chunks above 256 MiB"),
        ((1 << 12) + 1, 1, "has 4097 chunks of 4 B: write it in larger chunks"),
    ],
)
def test_false_chunk_shapes_are_refused_before_a_look_at_the_chunks(
    tmp_path, capsys, rows, chunk, words
):
    path = graph_content().write(tmp_path / "g.h5")
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        made = file.create_dataset(
            "more", (rows,), "f4", chunks=(chunk,), maxshape=(None,), fletcher32=True
        )
        if rows < 1 << 20:
            made[...] = 1
    assert main.main(["info", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hpcgnn: error: {path}: more: {words}")
    with Reader(path, None) as reader, pytest.raises(InputError, match=words):
        reader.column("more", ("float32",), (None,))


@pytest.mark.parametrize("what", ["group", "attribute"])
def test_names_that_are_not_utf_8_are_refused(tmp_path, capsys, what):
    path = tmp_path / "g.h5"
    write(path, graph_content(), [0, 9])
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        if what == "group":
            file["nodes"].create_group(b"a\xff")
        else:
            file.attrs.create(b"a\xff", 3)
    for options in ((), ("--json",), ("--check",)):
        assert main.main(["info", str(path), *options]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"hpcgnn: error: {path}: ") and said.err.count("\n") == 1
        assert "is not UTF-8" in said.err


def test_groups_nested_without_end_are_refused_in_time(tmp_path, capsys):
    path = tmp_path / "g.h5"
    write(path, graph_content(), [0, 9])
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        group = file["nodes"]
        for _ in range(50):  # thousands would take minutes
            group = group.create_group("a")
    assert main.main(["info", str(path)]) == 2
    assert capsys.readouterr().err.endswith(
        ": groups are nested more than 32 deep; the file is damaged: create it again\n"
    )
