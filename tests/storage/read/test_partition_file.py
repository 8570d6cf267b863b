"""Partition files: written by any number of ranks, read part by part, every rule checked."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, OutputError
from hpcgnn.storage.fingerprint import fingerprint, to_hex
from hpcgnn.storage.read.partition_file import Part, PartitionFile, write_parts
from hpcgnn.storage.write import atomic
from tests.storage.partitions import small_parts, write_small


def same(one: Part, other: Part) -> None:
    assert one.arrays().keys() == other.arrays().keys()
    for name, array in one.arrays().items():
        assert array.dtype == other.arrays()[name].dtype, name
        np.testing.assert_array_equal(array, other.arrays()[name], name)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("num_parts", "symmetric", "compress"),
    [(1, False, True), (1, True, False), (5, False, False), (5, True, True)],
)
def test_parts_are_read_back_as_written(comm, shared_path, num_parts, symmetric, compress):
    path = shared_path / "p.h5"
    parts, header = small_parts(comm, num_parts, symmetric=symmetric, sparse=symmetric)
    for _ in range(2):  # the second replaces the first
        write_parts(path, comm, parts, header, compress=compress)
    with PartitionFile(path) as file:
        assert file.header | header == file.header
        assert file.num_parts == num_parts and file.symmetric == symmetric
        for part in parts:
            assert part.index % comm.size == comm.rank
            same(file.read_part(part.index), part)
        for index in range(num_parts):
            assert file.read_part(index).num_nodes == file.sizes[index, 0]
    comm.barrier()
    assert [entry.name for entry in shared_path.iterdir()] == ["p.h5"]


@pytest.mark.mpi
def test_the_file_does_not_depend_on_the_number_of_ranks(comm, shared_path):
    write_small(shared_path / "all.h5", comm, 4)
    if comm.rank == 0:
        alone = Communicator(comm.mpi.Split(0, 0))
        write_small(shared_path / "one.h5", alone, 4)
        with PartitionFile(shared_path / "all.h5") as a, PartitionFile(shared_path / "one.h5") as b:
            assert a.header == b.header
            for index in range(4):
                same(a.read_part(index), b.read_part(index))
    else:
        comm.mpi.Split(1, 0)
    comm.barrier()


@pytest.mark.mpi
def test_an_error_on_one_rank_is_raised_on_all_and_leaves_no_file(comm, shared_path, monkeypatch):
    path = shared_path / "p.h5"
    last = comm.size - 1
    parts, header = small_parts(comm, comm.size)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if not h5py.get_config().mpi:
        with monkeypatch.context() as patch:
            if comm.rank == last:
                patch.setattr(os, "pwrite", full)
            with pytest.raises(OutputError, match="No space left on device"):
                write_parts(path, comm, parts, header)
        comm.barrier()
        assert list(shared_path.iterdir()) == []
    if comm.rank == last:
        parts[0].in_edges.columns[0] = 1 << 20
    with pytest.raises(InputError, match=f"parts/{last:05d}/in/columns: entry 0 must lie in"):
        write_parts(path, comm, parts, header)
    with pytest.raises(OutputError, match="no such folder"):
        write_parts(shared_path / "absent" / "p.h5", comm, small_parts(comm, comm.size)[0], header)
    with pytest.raises(InputError, match="exactly once"):
        write_parts(path, comm, small_parts(comm, comm.size)[0] * 2, header)
    comm.barrier()
    assert list(shared_path.iterdir()) == []


def spoil(path: Path, name: str, change) -> None:
    """Change one array of part 0 and make the part's fingerprint fit again."""
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        array = change(file[name][...])
        kind = file[name].dtype
        del file[name]
        atomic.OutputFile(file, path).dataset(name, kind, array.shape)[...] = array
        group = file["parts/00000"]
        names: list[str] = []
        group.visit(lambda n: names.append(n) if isinstance(group[n], h5py.Dataset) else None)
        total = sum(fingerprint(f"parts/00000/{n}", group[n][...]) for n in names)
        del group.attrs["fingerprint"]
        atomic.set_attribute(group, "fingerprint", to_hex(total))


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


def swap_first(array):
    array[[0, 1]] = array[[1, 0]]
    return array


SPOILT = [
    ("nodes/ids", put(0, 30), "nodes/ids: entry 0 must lie in 0 .. 29 (found 30)"),
    ("nodes/ids", lambda a: np.where(a == a[1], a[0], a), "nodes/ids: a node appears twice"),
    ("nodes/ids", lambda a: a[:-1], "nodes/ids: must have shape"),
    ("nodes/labels", put(0, 3), "nodes/labels: entry 0"),
    ("nodes/features", put((0, 0), np.nan), "nodes/features: row 0"),
    ("in/edge_ptr", put(0, 1), "in/edge_ptr: must start at 0"),
    ("in/edge_ptr", put(-1, 10_000), "in/edge_ptr: must end at"),
    ("in/edge_ptr", lambda a: a[:-1], "in/edge_ptr: must have shape 4"),
    ("in/row_ptr", put(2, 10_000), "in/row_ptr: must not fall"),
    ("in/rows", put(0, -1), "in/rows: entry 0"),
    ("in/rows", swap_first, "in/rows: must rise"),
    ("in/counts", put(0, 0), "in/counts: entry 0"),
    ("in/counts", lambda a: a + (np.arange(len(a)) == 1), "in/counts: must add up"),
    ("in/counts", lambda a: a[:-1], "in/counts: must have shape"),
    ("in/columns", put(-1, 30), "in/columns: entry"),
    ("in/columns", lambda a: a[::-1].copy(), "in/columns:"),
    ("in/columns", lambda a: a[:-1], "in/weight: must have shape"),
    ("in/weight", put(3, np.inf), "in/weight: row 3"),
    ("in/weight", lambda a: a[:-1], "in/weight: must have shape"),
    ("in/relation", put(3, 3), "in/relation: entry 3"),
    ("in/features", put((3, 1), np.nan), "in/features: row 3"),
    (
        "in/recv_ptr",
        lambda a: a + np.array([0, 1, 1, 1]),
        "in/recv_ptr: part 0 must not exchange anything with itself",
    ),
    (
        "in/recv_ptr",
        lambda a: a + np.array([0, 0, 0, 1]),
        "in/recv_ptr: disagrees with exchange/in",
    ),
    ("in/send_ptr", put(-1, 0), "in/send_ptr"),
    ("in/send_rows", put(0, 99), "in/send_rows: entry 0"),
    ("in/send_rows", swap_first, "in/send_rows: must rise"),
    ("out/columns", put(-1, 30), "out/columns: entry"),
]


@pytest.mark.parametrize(("name", "change", "words"), SPOILT)
def test_every_rule_is_checked(comm, tmp_path, name, change, words):
    path = tmp_path / "p.h5"
    write_small(path, comm, 3)
    spoil(path, f"parts/00000/{name}", change)
    with PartitionFile(path) as file, pytest.raises(InputError) as caught:
        file.read_part(0)
    assert f"{path}: parts/00000/{words}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decreasing_values_within_a_row_are_refused(comm, tmp_path):
    path = tmp_path / "p.h5"
    parts = write_small(path, comm, 1)
    lists = parts[0].in_edges
    ends = np.cumsum(lists.counts)
    row = int(np.argmax(lists.counts))
    first, last = int(ends[row] - lists.counts[row]), int(ends[row]) - 1

    def exchange(array):
        array[[first, last]] = array[[last, first]]
        return array

    spoil(path, "parts/00000/in/columns", exchange)
    with PartitionFile(path) as file, pytest.raises(InputError, match="must not fall within a row"):
        file.read_part(0)


def test_wrong_headers_and_exchange_lists_are_refused(comm, tmp_path):
    path = tmp_path / "p.h5"

    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words), PartitionFile(path) as file:
            for index in range(3):
                file.read_part(index)

    write_small(path, comm, 3)
    with PartitionFile(path) as file, pytest.raises(InputError, match=r"parts are 0 \.\. 2"):
        file.read_part(3)
    with h5py.File(path, "r+") as file:
        file["exchange/sizes"][0] += 1
    refused("exchange/sizes: must add up")
    write_small(path, comm, 3)
    with h5py.File(path, "r+") as file:
        file["exchange/sizes"][...] = np.roll(file["exchange/sizes"][...], 1, axis=0)
    refused("nodes/ids: must have shape")
    write_small(path, comm, 3)
    with h5py.File(path, "r+") as file:
        file["exchange/out"][2, 0] += 1
    refused("disagrees with exchange/out")
    write_small(path, comm, 3)
    with h5py.File(path, "r+") as file:
        file["parts/00002"].attrs["fingerprint"] = np.bytes_("0" * 16)
    refused("parts/00002: the data don't match their fingerprint")
    write_small(path, comm, 3)
    with h5py.File(path, "r+") as file:
        del file["parts/00001"]
    refused("parts/00001/nodes/ids: is missing")
