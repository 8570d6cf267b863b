"""Environment variables that launchers set, and stray values of them."""

from __future__ import annotations

import os
import socket

import pytest

from hpcgnn.comm.environment import FORGONE, forget_nonsense, forgone, is_forgone
from hpcgnn.comm.launcher import _LAUNCHERS
from hpcgnn.errors import InputError

NAMES = ("PMI_RANK", "PMI_ID", "PMI_SIZE", "PMI_FD", "PMI_PORT", "PMIX_RANK", "PMIX_NAMESPACE")


@pytest.mark.parametrize("value", ["x", "", "nan", "-1", "9" * 30, "1.5"])
def test_variables_that_would_break_mpis_start_are_removed(monkeypatch, value):
    for name in NAMES:
        monkeypatch.setenv(name, value)
    forget_nonsense()
    left = {name for name in NAMES if name in os.environ}
    assert left == ({"PMI_RANK", "PMI_ID", "PMI_SIZE"} if value == "-1" else set())


def test_variables_set_by_launchers_are_kept(monkeypatch):
    read, write = os.pipe()
    values = dict(zip(NAMES, ("1", "1", "2", str(read), "node:4000", "1", "job"), strict=True))
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PMIX_SERVER_URI41", "job.0;tcp4://node:4001")
    forget_nonsense()
    assert {name: os.environ.get(name) for name in NAMES} == values
    os.close(read)
    os.close(write)
    forget_nonsense()
    assert "PMI_FD" not in os.environ


@pytest.mark.parametrize("name", ["PMI_RANK", "PMI_SIZE"])
@pytest.mark.parametrize("value", ["x", "", "-1", "999999999999"])
def test_overwritten_variables_of_a_launcher_are_refused(monkeypatch, name, value):
    """MPICH crashes, or waits for ever, if it is started with them."""
    here, there = socket.socketpair()
    with here, there, monkeypatch.context() as changed:
        values = {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": str(here.fileno()), name: value}
        for variable, text in values.items():
            changed.setenv(variable, text)
        with pytest.raises(InputError, match=f"{name} must be as mpiexec or srun sets it"):
            forget_nonsense()


def test_one_process_runs_without_mpi_on_request(monkeypatch):
    for names in _LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    assert not is_forgone()
    with forgone():
        assert is_forgone()
    assert not is_forgone()
    monkeypatch.setenv(FORGONE, "mpich")
    with pytest.raises(InputError, match=r"HPCGNN_MPI must be none or unset .*'mpich'"):
        is_forgone()
    with forgone():
        assert is_forgone()
    assert os.environ[FORGONE] == "mpich"
    monkeypatch.setenv(FORGONE, "none")
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(InputError, match=r"HPCGNN_MPI=none is for one process"):
        is_forgone()
