from __future__ import annotations

import fcntl
import json
import os

import pytest

from hpcgnn.errors import InputError, OutputError
from hpcgnn.train.config import Config
from hpcgnn.train.run_dir import held, write_config


@pytest.mark.mpi
def test_one_job_at_a_time(comm, shared_path):
    run_dir = shared_path / "new" / "run"
    with held(run_dir, comm):
        comm.barrier()
    other = os.open(run_dir, os.O_RDONLY)
    if comm.rank == 0:
        fcntl.flock(other, fcntl.LOCK_EX)
    with (
        pytest.raises(InputError, match=r"run: another job trains in this run directory"),
        held(run_dir, comm, patience=0),
    ):
        pass
    os.close(other)
    comm.barrier()
    with held(run_dir, comm, patience=0):
        comm.barrier()


@pytest.mark.mpi
def test_the_configuration_is_replaced_or_left(comm, shared_path):
    for hidden in (7, 9):
        write_config(shared_path, comm, Config(hidden=hidden))
        assert json.loads((shared_path / "config.json").read_text())["hidden"] == hidden
    comm.barrier()
    with pytest.raises(OutputError, match="no such folder"):
        write_config(shared_path / "none", comm, Config())
    assert [path.name for path in shared_path.iterdir()] == ["config.json"]


@pytest.mark.mpi
def test_a_directory_that_cannot_be_made_is_refused_on_all_ranks(comm, shared_path):
    if comm.rank == 0:
        (shared_path / "file").write_text("")
    comm.barrier()
    with (
        pytest.raises(OutputError, match="can't be written"),
        held(shared_path / "file" / "run", comm),
    ):
        pass
