"""Fixtures for tests of verbs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(comm, stored, shared_path, monkeypatch) -> Path:
    """The current folder of all ranks: new, with a copy of the module's `stored` files."""
    monkeypatch.chdir(shared_path)
    if comm.rank == 0:
        shutil.copytree(stored, shared_path, dirs_exist_ok=True)
    comm.barrier()
    return shared_path
