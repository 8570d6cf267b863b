"""Parallel HDF5: writes in slabs, and no rank waits forever for one that stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcgnn.storage import schema
from hpcgnn.storage.read.partition_file import PartitionFile, write_parts
from hpcgnn.storage.write import parallel
from tests.storage.partitions import small_parts

pytestmark = pytest.mark.skipif(
    not h5py.get_config().mpi, reason="h5py is not built on parallel HDF5"
)

FAULTY = """
import operator, os, signal, sys
from pathlib import Path
import h5py
from hpcgnn.comm import world
from hpcgnn.storage.write import atomic, parallel
from tests.storage.partitions import write_small

def main(comm):
    owner, name = sys.argv[1].rsplit(".", 1)
    owner = operator.attrgetter(owner)(sys.modules[__name__])
    real = getattr(owner, name)
    def stop(*arguments, **options):
        if comm.rank == 1 and options.get("driver", "mpio") == "mpio":
            if sys.argv[3] == "MemoryError":
                raise MemoryError
            os.kill(os.getpid(), signal.Signals[sys.argv[3]])
        return real(*arguments, **options)
    setattr(owner, name, stop)
    write_small(Path(sys.argv[2]), comm, 2)
    return 0

sys.exit(world.run(main))
"""

CAUGHT = """
import gc, sys
from pathlib import Path
from hpcgnn.comm.communicator import Communicator
from hpcgnn.storage.write import parallel
from tests.storage.partitions import write_small

real = parallel._write
def fail(comm, *arguments):
    if comm.rank == 1:
        raise MemoryError
    real(comm, *arguments)

parallel._write = fail
try:
    write_small(Path(sys.argv[1]), Communicator(timeout=25), 2)
except Exception:
    pass
gc.collect()
parallel._write = real
write_small(Path(sys.argv[1]), Communicator(timeout=25), 2)
print("written", flush=True)
"""


def write_with(fault: str, call: str, path: Path, timeout: int) -> tuple[int, float, str]:
    """Write on two ranks, with a fault of rank 1 in this call; return status, seconds, stderr."""
    began = time.monotonic()
    done = subprocess.run(
        ["mpiexec", "-n", "2", sys.executable, "-c", FAULTY, call, path, fault],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"HPCGNN_TIMEOUT": str(timeout)},
    )
    return done.returncode, time.monotonic() - began, done.stderr


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("parallel._write", ["rank 1 (host ", "stopped answering", "'write parts/00000/"]),
        ("parallel._write_slab", ["rank 1 (host ", "stopped answering", "'write parts/00000/"]),
        ("atomic.OutputFile.dataset", ["rank 1 (host ", "stopped answering", "'create parts/0000"]),
        # While Python's lock is held, the watchdog can't report: a traceback has to suffice.
        ("h5py.File", ["Timeout (0:00:04)!", "write/parallel.py", "in _opened"]),
    ],
)
def test_a_rank_that_stops_ends_the_job(tmp_path, call, words):
    status, seconds, err = write_with("SIGSTOP", call, tmp_path / "p.h5", timeout=4)
    assert status != 0 and seconds < 60
    for word in words:
        assert word in err
    assert not (tmp_path / "p.h5").exists()


@pytest.mark.parametrize(
    ("fault", "expected"), [("SIGTERM", 128 + signal.SIGTERM), ("MemoryError", 5)]
)
def test_a_rank_that_ends_between_two_collective_calls_ends_the_job(tmp_path, fault, expected):
    """Its open file must not be closed: that would wait for the other rank."""
    status, seconds, err = write_with(fault, "parallel._write", tmp_path / "p.h5", timeout=90)
    assert status == expected and seconds < 60, err
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_catches_such_an_error_can_write_again_and_ends(tmp_path):
    done = subprocess.run(
        ["mpiexec", "-n", "2", sys.executable, "-c", CAUGHT, tmp_path / "p.h5"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[3],
        env=dict(os.environ),  # without the variables that MPI has set in C
    )
    assert done.stdout.count("written") == 2 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "p.h5").exists()


@pytest.mark.mpi
@pytest.mark.parametrize("compress", [False, True])
def test_long_datasets_are_written_in_slabs(comm, shared_path, monkeypatch, compress):
    monkeypatch.setattr(schema, "CHUNK_BYTES", 64)
    monkeypatch.setattr(parallel, "_SLAB_BYTES", 64)
    path = shared_path / "p.h5"
    parts, header = small_parts(comm, 5)
    write_parts(path, comm, parts, header, compress=compress)
    with PartitionFile(path) as file:
        for part in parts:
            found = file.read_part(part.index).arrays()
            assert found.keys() == part.arrays().keys()
            for name, array in part.arrays().items():
                np.testing.assert_array_equal(found[name], array, name)
    with h5py.File(path) as file:
        columns = file["parts/00000/in/columns"]
        assert columns.chunks == (16,) and columns.size > 32


@pytest.mark.mpi
@pytest.mark.parametrize("num_parts", [2, 3])
def test_empty_parts_and_ranks_without_parts(comm, shared_path, num_parts):
    """Part 1 of three is empty; of two parts, the third rank has none. Both write compressed."""
    parts, header = small_parts(comm, num_parts)
    write_parts(shared_path / "p.h5", comm, parts, header, compress=True)
    with PartitionFile(shared_path / "p.h5") as file:
        assert (file.sizes[:, 0] == 0).tolist() == [
            num_parts == 3 and k == 1 for k in range(num_parts)
        ]
        for part in parts:
            found = file.read_part(part.index).arrays()
            for name, array in part.arrays().items():
                np.testing.assert_array_equal(found[name], array, name)
    with h5py.File(shared_path / "p.h5") as file:
        assert file["parts/00000/in/columns"].compression == "gzip"
