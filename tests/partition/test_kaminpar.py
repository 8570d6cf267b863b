"""KaMinPar's file, its process and reasons against it; the choice of `auto`."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.comm import shortage as memory
from hpcgnn.errors import HpcgnnError, InputError, OutputError
from hpcgnn.partition import kaminpar, kaminpar_process, parhip
from hpcgnn.partition.options import PartitionOptions
from hpcgnn.partition.pipeline import assign, choose
from hpcgnn.partition.pyparmetis import binding, builds
from tests.partition.slabs import grid_edges, make_problem, random_edges


@pytest.fixture
def folder(comm, tmp_path):
    """A folder on rank 0, None on the others; rank 0's temporary files are written there too."""
    return tmp_path if comm.rank == 0 else None


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The place for temporary folders; nothing may be left in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.mpi
@pytest.mark.parametrize("held", [1 << 28, 100], ids=["at once", "in ranges"])
@pytest.mark.parametrize("wide", [False, True])
def test_the_file_holds_the_graph(comm, folder, monkeypatch, held, wide):
    monkeypatch.setattr(parhip, "_HELD", held)
    monkeypatch.setattr(parhip, "_SENT", 50)
    n = 60
    source, target = random_edges(n, 300)
    problem = make_problem(comm, (source, target), n, 2, all_on=1)
    layout = parhip.ParHIPLayout.of(comm, problem)
    if wide:
        layout = parhip.ParHIPLayout(n, layout.most, np.int64, np.int64)
    count = parhip.ParHIPFile(layout, folder).write(comm, problem)
    if folder is None:
        return
    dense = np.zeros((n, n), bool)
    dense[source, target] = dense[target, source] = True
    np.fill_diagonal(dense, False)
    assert count == dense.sum()
    data = (folder / kaminpar_process.GRAPH).read_bytes()
    number, width = (np.int64, 8) if wide else (np.int32, 4)
    assert np.frombuffer(data, np.int64, 3).tolist() == [1 if wide else 25, n, count]
    places = np.frombuffer(data, np.int64, n + 1, 24)
    assert places[0] == 24 + 8 * (n + 1) and len(data) == places[-1] + width * n
    found = np.frombuffer(data, number, count, places[0])
    row, column = np.nonzero(dense)
    assert np.array_equal(np.diff(places) // width, np.bincount(row, minlength=n))
    assert np.array_equal(found, column)
    weights = np.frombuffer(data, number, n, places[-1])
    assert np.array_equal(weights, 10 + np.bincount(target, minlength=n))


@pytest.mark.mpi
def test_a_missing_package_is_reported_on_all_ranks(comm, monkeypatch):
    monkeypatch.setattr(kaminpar, "is_there", lambda: comm.rank != 0)
    problem = make_problem(comm, grid_edges(9, 9), 81, 2)
    with pytest.raises(InputError, match=r"pip install kaminpar\); the others are parmetis"):
        assign(comm, "kaminpar", problem)
    problem = make_problem(
        comm, grid_edges(9, 9), 81, 2, options=PartitionOptions(balance_train=True)
    )
    with pytest.raises(InputError, match="--train-balance"):
        assign(comm, "kaminpar", problem)


@pytest.mark.mpi
def test_a_full_disk_ends_all_ranks_alike(comm, scratch, monkeypatch):
    pytest.importorskip("kaminpar")
    problem = make_problem(comm, grid_edges(9, 9), 81, 2)
    disk = type("Disk", (), {"free": 100})
    with monkeypatch.context() as patch:
        patch.setattr(kaminpar.shutil, "disk_usage", lambda _: disk)
        with pytest.raises(OutputError, match=r"takes up to \d+\.\d [kM]B, .* set TMPDIR"):
            assign(comm, "kaminpar", problem)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="can't be written: No space left on device: set TMPDIR"):
        assign(comm, "kaminpar", problem)


@pytest.mark.mpi
def test_no_temporary_folder_ends_all_ranks_alike(comm, tmp_path, monkeypatch):
    pytest.importorskip("kaminpar")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(
        OutputError, match=r"none: no temporary folder can be created: No such file"
    ):
        assign(comm, "kaminpar", make_problem(comm, grid_edges(9, 9), 81, 2))


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("kill -9 $$", "most likely for lack of memory"),
        ("echo 'no such graph' >&2; exit 3", "failed with status 3: no such graph"),
    ],
)
def test_a_failing_process_is_reported(comm, scratch, monkeypatch, command, said):
    pytest.importorskip("kaminpar")

    def start(folder: Path, *_):
        with (folder / kaminpar_process.OUTPUT).open("wb") as output:
            return subprocess.Popen(["sh", "-c", command], stdout=output, stderr=output)

    monkeypatch.setattr(kaminpar, "_start", start)
    with pytest.raises(HpcgnnError, match=said):
        assign(comm, "kaminpar", make_problem(comm, grid_edges(9, 9), 81, 2))


@pytest.mark.mpi
def test_auto_chooses_an_installed_method_that_fits(comm, monkeypatch):
    problem = make_problem(comm, grid_edges(9, 9), 81, 2)

    def none(*_, **__):
        raise InputError("ParMETIS was not found")

    small, has = 1 << 10, pytest.MonkeyPatch()
    library = binding.ParMETIS(Path("libparmetis.so"), object(), 4, 4)  # type: ignore[arg-type]
    with has.context() as patch:
        patch.setattr(builds, "load", lambda *_, **__: library)
        patch.setattr(kaminpar, "is_there", lambda: True)
        assert choose(comm, problem)[0] == "parmetis"
        patch.setattr(memory, "available_memory", lambda: small)
        method, reason = choose(comm, problem)
        assert method == "streaming"
        assert re.search(r"ParMETIS would need about \d+\.\d kB on .* 1\.0 kB are free", reason)
        with pytest.raises(InputError, match=r"start at least \d+ ranks.*--method kaminpar"):
            assign(comm, "parmetis", problem)
    with has.context() as patch:
        patch.setattr(builds, "load", none)
        patch.setattr(kaminpar, "is_there", lambda: True)
        method, reason = choose(comm, problem)
        assert method == "kaminpar" and "ParMETIS was not found" in reason
        patch.setattr(kaminpar, "is_there", lambda: False)
        method, reason = choose(comm, problem)
        assert method == "streaming" and "pip install kaminpar" in reason
    balanced = make_problem(
        comm, grid_edges(9, 9), 81, 2, options=PartitionOptions(balance_train=True)
    )
    assert choose(comm, balanced)[0] == "parmetis"


def test_number_of_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert kaminpar.threads(repeatable=False) == 4 and kaminpar.threads(repeatable=True) == 1
    for text, count in (("2", 2), ("2,4", 2), ("9", 4), ("0", 4), ("many", 4), ("²", 4), ("-1", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert kaminpar.threads(repeatable=False) == count
