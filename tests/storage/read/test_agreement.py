"""Parts that are valid by themselves but contradict each other, with correct checksums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcgnn.comm.transport.host import HostTransport
from hpcgnn.errors import InputError
from hpcgnn.storage.read import load
from hpcgnn.storage.read.load import load_partition
from hpcgnn.storage.read.partition_file import Part, PartitionFile, check_whole, write_parts
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.write import atomic
from tests.storage.partitions import small_parts, write_small

Change = Callable[[list[Part], dict[str, Any]], None]


def node_twice(parts: list[Part], header: dict[str, Any]) -> None:
    parts[1].ids[0] = parts[0].ids[0]


def other_rows(parts: list[Part], header: dict[str, Any]) -> None:
    lists = parts[0].in_edges
    first, last = lists.send_ptr[2], lists.send_ptr[3]
    unsent = np.setdiff1d(np.arange(parts[0].num_nodes), lists.send_rows[first:last])
    lists.send_rows[first] = unsent[0]
    lists.send_rows[first:last].sort()


def no_weights(parts: list[Part], header: dict[str, Any]) -> None:
    for lists in parts[1].sides().values():
        lists.weight = None


def other_weight(parts: list[Part], header: dict[str, Any]) -> None:
    parts[2].in_edges.weight[parts[2].in_edges.edge_ptr[1] - 1] += 1


def other_relation(parts: list[Part], header: dict[str, Any]) -> None:
    relation = parts[1].in_edges.relation
    relation[parts[1].in_edges.edge_ptr[1]] ^= 1  # of an edge inside the part


def other_features(parts: list[Part], header: dict[str, Any]) -> None:
    parts[0].in_edges.features[-1, 1] *= 2


def other_source(parts: list[Part], header: dict[str, Any]) -> None:
    lists = parts[1].in_edges
    block = lists.columns[lists.edge_ptr[0] : lists.edge_ptr[1]]
    block[0] = 0 if block[0] else 1
    ends = np.cumsum(lists.counts)
    block[: ends[0]].sort()


def no_ids(parts: list[Part], header: dict[str, Any]) -> None:
    parts[2].original_ids = parts[2].nodes.original_ids = None


def half_features(parts: list[Part], header: dict[str, Any]) -> None:
    parts[1].nodes.features = parts[1].nodes.features.astype(np.float16)


def typed_widths(parts: list[Part], header: dict[str, Any]) -> None:
    header["num_types"] = 1
    for part, width in zip(parts, (4, 4, 7), strict=True):
        part.nodes.type = np.zeros(part.num_nodes, np.int32)
        part.nodes.typed_features = {0: np.ones((part.num_nodes, width), np.float32)}


FORGED: list[tuple[Change, str]] = [
    (node_twice, "have a node in common"),
    (other_rows, "parts/00000/in/send_rows: the rows sent to part 2"),
    (no_weights, "parts/00001/in/weight: is missing, but has float32 in part 0"),
    (other_weight, "about the edges between them"),
    (other_relation, "about the edges between them"),
    (other_features, "about the edges between them"),
    (other_source, "about the edges between them"),
    (no_ids, "parts/00002/nodes/original_ids: is missing"),
    (half_features, r"parts/00001/nodes/features: has rows of \d+xfloat16, but has rows of"),
    (typed_widths, "parts/00002/nodes/typed_features/0: has rows of 7xfloat32"),
]


@pytest.mark.parametrize("num_parts", [1, 3, 5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_valid_parts_agree(comm, tmp_path, num_parts, symmetric):
    """One of them is empty where there are three or more."""
    write_small(tmp_path / "p.h5", comm, num_parts, symmetric=symmetric, sparse=symmetric)
    with PartitionFile(tmp_path / "p.h5") as file:
        check_whole(file)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("change", "words"), FORGED)
def test_contradictory_parts_are_refused(comm, tmp_path, change, words, symmetric):
    path = tmp_path / "p.h5"
    parts, header = small_parts(comm, 3, symmetric=symmetric, even=True)
    change(parts, header)
    write_parts(path, comm, parts, header)
    with PartitionFile(path) as file, pytest.raises(InputError, match=words) as caught:
        check_whole(file)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.mpi
@pytest.mark.parametrize("change", ["twice", "weight", "missing", "fingerprint"])
def test_all_ranks_raise_the_same_error(comm, shared_path, change):
    path, last = shared_path / "p.h5", comm.size - 1
    if comm.size == 1 and change in ("twice", "missing"):
        pytest.skip("one part can't contradict another")
    parts, header = small_parts(comm, comm.size, symmetric=True, even=True)
    write_parts(path, comm, parts, header)
    load_partition(path, comm)
    first = comm.broadcast(int(parts[0].ids[0]))
    if comm.rank == last and change == "twice":
        parts[0].ids[0] = first
    if comm.rank == last and change == "weight":
        parts[0].in_edges.weight[-1] += 1
    if comm.rank == last and change == "missing":
        parts[0].original_ids = parts[0].nodes.original_ids = None
    write_parts(path, comm, parts, header)
    if change == "fingerprint" and comm.rank == 0:
        with Reader(path, None) as reader:
            attributes = reader.attributes | {"fingerprint": "0" * 16}
        with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
            for name in list(file.attrs):
                del file.attrs[name]
            atomic.OutputFile(file, path).set_attributes(attributes)
    comm.barrier()
    with pytest.raises(InputError) as caught:
        load_partition(path, comm)
    words = {
        "twice": "parts: have a node in common",
        "weight": "about the edges between them",
        "missing": f"parts/{last:05d}/nodes/original_ids: is missing",
        "fingerprint": "don't match the fingerprint 0000000000000000",
    }
    assert words[change] in str(caught.value)
    assert len(set(comm.allgather(str(caught.value)))) == 1


@pytest.mark.mpi
def test_the_requested_device_and_transport_are_used(comm, shared_path, monkeypatch):
    path = shared_path / "p.h5"
    write_small(path, comm, comm.size)
    with pytest.raises(InputError, match="the device must be one of auto, cpu, cuda"):
        load_partition(path, comm, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda"):
            load_partition(path, comm, device="cuda")
        graph = load_partition(path, comm, device="auto")
        assert graph.node_ids.device.type == "cpu" and graph.ring.transport.name == "host"
    transport = HostTransport()
    monkeypatch.setattr(load, "pick_device", lambda comm, wanted: torch.device("meta"))
    monkeypatch.setattr(load, "choose_transport", lambda comm, device: transport)
    graph = load_partition(path, comm, device="cuda")
    assert graph.ring.transport is transport and graph.node_ids.device.type == "meta"


@pytest.mark.mpi
def test_ranks_that_read_different_files_are_refused(comm, shared_path):
    if comm.size == 1:
        pytest.skip("one rank reads one file")
    write_small(shared_path / "a.h5", comm, comm.size)
    parts, header = small_parts(comm, comm.size)
    header["graph_fingerprint"] = "f" * 16
    write_parts(shared_path / "b.h5", comm, parts, header)
    write_small(shared_path / "c.h5", comm, comm.size, symmetric=True)
    for other in ("b.h5", "c.h5"):
        name = "a.h5" if comm.rank < comm.size - 1 else other
        words = f"rank {comm.size - 1} reads another partition file than rank 0"
        with pytest.raises(InputError, match=words):
            load_partition(shared_path / name, comm)
