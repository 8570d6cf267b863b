"""Small sources of every format, randomly damaged: a graph, or one line of error and no file."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hpcgnn.cli.main import main
from hpcgnn.errors import InputError
from hpcgnn.storage.importers.arrays import ArraySource
from hpcgnn.storage.importers.pairs import pair_column
from hpcgnn.storage.importers.table_files import ParquetTable
from tests.storage.importers.conftest import read

TRIALS = 30


def npz(save) -> bytes:
    out = io.BytesIO()
    save(
        out,
        indptr=np.array([0, 2, 3, 3]),
        indices=np.array([1, 2, 0]),
        feature_indptr=np.array([0, 1, 2, 2]),
        feature_indices=np.array([0, 3]),
        feature_data=np.array([0.5, 1]),
        feature_shape=np.array([3, 4]),
        labels=np.array([0, 1, -1]),
        train=np.array([0]),
        valid=np.array([False, True, False]),
        edge_label=np.array([0, -1, 2]),
        edge_split=np.array([1, 0, 3], np.int8),
        array_x=np.array([0.5, np.nan, 2]),
    )
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(20).reshape(2, 10) % 7)
    return out.getvalue()


def pt() -> bytes:
    out = io.BytesIO()
    pairs = torch.tensor([[0, 1], [1, 2]])
    torch.save({"edge_index": pairs, "x": torch.ones(3, 2), "y": torch.tensor([0, 1, 1])}, out)
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"src": ["a", "b", "c"], "dst": ["b", "c", "a"]}), out)
    return out.getvalue()


def graphml() -> bytes:
    graph = nx.path_graph(4)
    graph.nodes[0]["kind"] = "first"
    return "\n".join(nx.generate_graphml(graph)).encode()


SOURCES = {
    "g.pt": pt(),
    "g.parquet": parquet(),
    "g.graphml": graphml(),
    "t.csv": b'source,target,weight\na,b,1\n"b c",a,2.5\n\nd,"b c",0\n',
    "t.tsv.zst": pa.compress(b"src\tdst\n12\t7\n7\t3\n", "zstd", asbytes=True),
    "plain.npz": npz(np.savez),
    "packed.npz": npz(np.savez_compressed),
    "g.npy": npy(),
    "g.txt": b"# c\n0 1\n1 2\n\n30 4\n",
    "g.csv.gz": gzip.compress(b"0,1\n1,2\n30,4\n" * 5),
    "g.graph": b"3 2 001\n2 5\n1 5 3 1\n2 1\n",
    "g.mtx": b"%%MatrixMarket matrix coordinate real symmetric\n% c\n4 4 2\n2 1 .5\n4 1 2e3\n",
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    kind = rng.choice(["cut", "byte", "bit", "text", "move"])
    at, other = rng.randrange(len(out)), rng.randrange(len(out))
    if kind == "cut":
        del out[at:]
    elif kind == "byte":
        out[at] = rng.randrange(256)
    elif kind == "bit":
        out[at] ^= 1 << rng.randrange(8)
    elif kind == "text":
        out[at : at + 1] = bytes(rng.choices(b"0123456789 \n-.,e%#", k=rng.randrange(5)))
    else:
        out[at : at + rng.randrange(9)] = out[other : other + rng.randrange(9)]
    return bytes(out)


def attempt(source: Path, folder: Path, capfd) -> bool:
    """Convert; return whether it was refused in one line without a file, or gave a valid file."""
    capfd.readouterr()
    status = main(["convert", str(source), str(folder / "g.h5")])
    lines = [line for line in capfd.readouterr().err.splitlines() if ": note: " not in line]
    left = [path.name for path in folder.iterdir()]
    if status == 0:
        assert left == ["g.h5"] and not lines
        read(folder / "g.h5")
        (folder / "g.h5").unlink()
        return False
    assert (status, len(lines), left) == (2, 1, []), lines
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_damaged_files_are_refused_or_converted(name, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    source = tmp_path / name
    source.write_bytes(SOURCES[name])
    assert not attempt(source, tmp_path / "out", capfd)
    rng = random.Random(name)
    refusals = 0
    for _ in range(TRIALS):
        source.write_bytes(damaged(SOURCES[name], rng))
        refusals += attempt(source, tmp_path / "out", capfd)
    assert refusals > TRIALS // 4


def test_damaged_planetoid_files_are_refused_or_converted(data, tmp_path, capfd):
    """Changes at the start of all real files except the largest."""
    (tmp_path / "out").mkdir()
    folder = tmp_path / "planetoid"
    folder.mkdir()
    for path in (data / "planetoid").glob("ind.cora.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    rng = random.Random(0)
    for part in ("y", "ty", "tx", "ally", "test.index"):
        source = folder / f"ind.cora.{part}"
        whole = source.read_bytes()
        for _ in range(4):
            at = rng.randrange(300)  # the header, which describes the structure
            source.write_bytes(whole[:at] + damaged(whole[at : at + 9], rng) + whole[at + 9 :])
            attempt(source, tmp_path / "out", capfd)
        source.write_bytes(whole)
    assert not attempt(folder, tmp_path / "out", capfd)


def test_a_table_replaced_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"src": range(9), "dst": range(9)}), path)
    table = ParquetTable(path)
    pq.write_table(pa.table({"src": range(7), "dst": range(7)}), path)
    with pytest.raises(InputError, match=r"e\.parquet: .* was replaced .*: 9 rows .*found 7"):
        list(table.batches({"src": "integer", "dst": "integer"}))


@pytest.mark.parametrize("shape", [(9, 2), (2, 9)])
@pytest.mark.parametrize("later", [np.zeros((2, 99), int), np.zeros((2, 9), np.int32)])
def test_an_array_replaced_while_it_is_read_is_refused(tmp_path, shape, later):
    path = tmp_path / "e.npy"
    np.save(path, np.zeros(shape, int))
    column = pair_column(ArraySource(path), 1 << 20)
    np.save(path, later)
    with pytest.raises(InputError, match=r"e\.npy: has been replaced while it was read"):
        list(column.chunks)
