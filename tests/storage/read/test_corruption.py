"""Random damage to a file is refused in one line, or provably changed nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.partition_file import PartitionFile
from hpcgnn.storage.write.graph_writer import GraphWriter
from tests.storage.files import graph_content
from tests.storage.partitions import write_small
from tests.storage.write.test_graph_writer import write

CASES = 50  # of each kind of file; every seed draws others

pytestmark = pytest.mark.slow


def graph_data(path: Path) -> dict[str, object]:
    """Return the whole content of a graph file."""
    with GraphFile(path) as graph:
        slab = graph.read_rows(0, graph.num_nodes)
        nodes = graph.read_nodes(0, graph.num_nodes).arrays()
        header = (graph.counts, graph.fingerprint, graph.config)
        return {"header": header, **vars(slab), **nodes}


def partition_data(path: Path) -> dict[str, object]:
    """Return the whole content of a partition file."""
    with PartitionFile(path) as file:
        data: dict[str, object] = {"header": file.header}
        for index in range(file.num_parts):
            data |= file.read_part(index).arrays()
        return data


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return damaged data: a flipped bit, several, a wiped or repeated stretch, or a truncation."""
    kind = rng.choice(["bit", "bit", "bits", "zeros", "ones", "moved", "cut"])
    at = rng.randrange(len(data))
    length = rng.choice([1, 8, 64, 512])
    changed = bytearray(data)
    if kind == "cut":
        return data[:at]
    if kind == "moved":
        source = rng.randrange(len(data))
        changed[at : at + length] = data[source : source + length]
        return bytes(changed[: len(data)])
    for _ in range({"bit": 1, "bits": 5}.get(kind, 0)):
        at = rng.randrange(len(data))
        changed[at] ^= 1 << rng.randrange(8)
    if kind in ("zeros", "ones"):
        stretch = len(changed[at : at + length])
        changed[at : at + stretch] = (b"\0" if kind == "zeros" else b"\xff") * stretch
    return bytes(changed)


def sweep(
    path: Path, read: Callable[[Path], dict[str, object]], seed: int, cases: int = CASES
) -> int:
    """Return how many damaged files were refused; the others must read as before."""
    rng = random.Random(seed)
    sound = path.read_bytes()
    expected = read(path)
    refused = 0
    for case in range(cases):
        path.write_bytes(damage(sound, rng))
        try:
            found = read(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        assert found.keys() == expected.keys(), f"case {case}"
        for name, value in expected.items():
            np.testing.assert_equal(found[name], value, f"case {case}: {name}")
    path.write_bytes(sound)
    return refused


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_corrupted_graph_files_are_refused(tmp_path, sparse, compress):
    write(tmp_path / "g.h5", graph_content(sparse=sparse), [0, 4, 9], compress=compress)
    assert sweep(tmp_path / "g.h5", graph_data, seed=4 * sparse + 2 * compress) > CASES / 2


def test_corrupted_graphs_of_several_chunks_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    with GraphWriter(tmp_path / "g.h5", num_nodes=1000) as writer:
        for _ in range(10):
            writer.append_rows(np.full(100, 1000), rng.integers(0, 1000, 100_000))
    assert sweep(tmp_path / "g.h5", graph_data, seed=1) > CASES / 2


@pytest.mark.parametrize("symmetric", [False, True])
def test_corrupted_partition_files_are_refused(comm, tmp_path, symmetric):
    write_small(tmp_path / "p.h5", comm, 3, symmetric=symmetric)
    assert sweep(tmp_path / "p.h5", partition_data, seed=3 + 2 * symmetric) > CASES / 2
