"""Edges in Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=1000)
    return path


def test_columns_of_a_file(convert, refused, tmp_path):
    path = write(tmp_path / "g.parquet", w=[0.5, 2], dst=[9, 7], src=[7, 10**15], other=["a", "b"])
    graph = convert(path)
    assert graph.named_edges == [(7, 9), (10**15, 7)] and graph.slab.weight is None
    graph = convert(path, "--columns", "dst,src,w")
    assert graph.named_edges == [(7, 10**15), (9, 7)]
    assert sorted(graph.slab.weight) == [0.5, 2]
    assert "has columns w, dst, src, other" in refused(path, "--columns", "dst,nothing")
    assert "other: must hold numbers" in refused(path, "--columns", "src,dst,other")


def test_long_columns_are_decoded_side_by_side(convert, refused, tmp_path):
    """More rows than a batch; a column of dictionaries comes in pieces cut elsewhere."""
    rng = np.random.default_rng(1)
    number = 70_000
    columns = {"src": rng.integers(0, 900, number), "dst": rng.integers(0, 900, number)}
    edges = sorted(zip(columns["src"].tolist(), columns["dst"].tolist(), strict=True))
    assert convert(write(tmp_path / "g.parquet", **columns)).edges == edges
    parts = np.array_split(columns["dst"], 4)
    cut = pa.chunked_array([pa.array(part).dictionary_encode() for part in parts])
    source = columns["src"].astype(np.uint32)
    assert convert(write(tmp_path / "g.parquet", src=source, dst=cut)).edges == edges
    for name in columns:
        spoilt = columns | {name: np.where(np.arange(number) == 69_999, -1, columns[name])}
        said = refused(write(tmp_path / "g.parquet", **spoilt))
        assert f"row 69999, {name}: ids are numbers from 0" in said


def test_a_folder_of_files(convert, refused, tmp_path):
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 500, (7000, 2))
    folder = tmp_path / "edges"
    assert "no such file" in refused(folder, "--format", "parquet")
    folder.mkdir()
    assert "no *.parquet files" in refused(folder, "--format", "parquet")
    for k, part in enumerate(np.array_split(pairs, 3)):
        write(folder / f"part-{k}.parquet", source=part[:, 0], target=part[:, 1].astype(np.uint16))
    assert convert(folder).edges == sorted(map(tuple, pairs.tolist()))


def test_columns_in_the_names_of_folders_are_named(convert, refused, tmp_path, capfd):
    for year in (2020, 2021):
        folder = tmp_path / "edges" / f"year={year}" / "month=1"
        folder.mkdir(parents=True)
        write(folder / "part-0.parquet", src=[0], dst=[year - 2019], note=["a"])
    assert convert(tmp_path / "edges").edges == [(0, 1), (0, 2)]
    ignored = "ignored: note, month (in the names of folders), year (in the names of folders)"
    assert ignored in capfd.readouterr().err
    said = refused(tmp_path / "edges", "--columns", "src,dst,year")
    assert "edges: is only in the names of folders" in said and "(found 'year')" in said


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"src": [0, 1], "dst": [1, None]}, "dst: row 1 is null"),
        ({"src": [0, 1], "dst": [1, -2]}, "row 1, dst: ids are numbers from 0: --string-ids"),
        ({"src": [0, 1], "dst": [0.5, 1]}, "row 0, dst: is not a whole number"),
        ({"src": pa.array([0, 2**64 - 1], pa.uint64()), "dst": [1, 1]}, "does not fit"),
        ({"src": [0, 1], "dst": [1, 1], "weight": [1, np.inf]}, "row 1: weight must be a finite"),
        ({"a": [0, 1], "b": [1, 2]}, "choose source and destination with --columns A,B"),
        ({"src": pa.array([], pa.int64()), "dst": pa.array([], pa.int64())}, "holds no edges"),
    ],
)
def test_bad_columns_are_refused(refused, tmp_path, columns, message):
    assert message in refused(write(tmp_path / "g.parquet", **columns))


def test_damaged_files_are_refused(refused, tmp_path):
    path = write(tmp_path / "g.parquet", src=np.arange(9999), dst=np.arange(9999))
    whole = path.read_bytes()
    for spoilt in (b"", b"PAR1", whole[:-9], whole[:4] + b"\xff" * 4000 + whole[4004:]):
        path.write_bytes(spoilt)
        assert "g.parquet" in refused(path)


def test_pages_are_compared_with_their_checksums(refused, tmp_path):
    pq.write_table(
        pa.table({"src": np.arange(1000), "dst": np.arange(1000)}),
        tmp_path / "g.parquet",
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    whole = bytearray((tmp_path / "g.parquet").read_bytes())
    whole[600] ^= 1
    (tmp_path / "g.parquet").write_bytes(whole)
    assert "CRC checksum verification failed" in refused(tmp_path / "g.parquet")


def test_ambiguous_columns_are_refused(convert, refused, tmp_path, capfd):
    twice = pa.Table.from_arrays(
        [pa.array([0]), pa.array([1]), pa.array([2])], ["src", "dst", "dst"]
    )
    pq.write_table(twice, tmp_path / "g.parquet")
    assert "this one twice (found 'dst')" in refused(tmp_path / "g.parquet")
    path = write(tmp_path / "g.parquet", source=[0], destination=[1], target=[2])
    assert "choose source and destination with --columns" in refused(path)
    assert "a column is chosen for two purposes" in refused(path, "--columns", "source,source")
    assert "not booleans" in refused(write(path, src=[True], dst=[1]))
    convert(write(path, src=[0], dst=[1], year=[2]))
    assert "ignored: year" in capfd.readouterr().err
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "0.parquet", src=[0], dst=[1])
    write(tmp_path / "parts" / "1.parquet", a=[0], b=[1])
    assert "1.parquet: has columns a, b, but not src and dst" in refused(tmp_path / "parts")
