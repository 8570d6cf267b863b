"""Ranks with different arguments or files find the difference together."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcgnn.comm.agreement import require_same, require_same_file
from hpcgnn.errors import InputError

pytestmark = pytest.mark.mpi


def test_equal_values_are_accepted(comm):
    require_same(comm, {"seed": 3, "rate": float("nan")}, "options")


def test_the_first_difference_is_named_on_all_ranks(comm):
    last = comm.rank == comm.size - 1
    facts = {"epochs": 5, "seed": 1 if last else 0} | ({"more": 1} if last else {})
    if comm.size == 1:
        require_same(comm, facts, "options")
        return
    with pytest.raises(InputError, match="the ranks have different options: seed is ") as caught:
        require_same(comm, facts, "options", file="g.h5")
    assert str(caught.value).startswith("g.h5: ")
    assert len(set(comm.allgather(str(caught.value)))) == 1


def test_paths_are_shown_by_name(comm):
    name = Path("b.h5" if comm.rank == 1 else "a.h5")
    if comm.size == 1:
        require_same(comm, {"file": name, "sources": [name]}, "options")
        return
    with pytest.raises(InputError, match=r"file is 'b\.h5' on rank 1, 'a.h5' on rank 0"):
        require_same(comm, {"file": name}, "options")
    with pytest.raises(InputError, match=r"sources is \['b.h5'\] on rank 1, \['a.h5'\] on rank 0"):
        require_same(comm, {"sources": [name]}, "options")


def test_different_file_contents_are_refused(comm, shared_path):
    same, own = shared_path / "same", shared_path / f"{min(comm.rank, 1)}"
    if comm.rank == 0:
        same.write_text("a" * 3_000_000)
        for name in "01":
            (shared_path / name).write_text(f"{name}\n")
    comm.barrier()
    require_same_file(comm, same, "pairs")
    if comm.size > 1:
        with pytest.raises(InputError, match="the ranks have different pairs: checksum is"):
            require_same_file(comm, own, "pairs")
    with pytest.raises(InputError, match="is not a regular file"):
        require_same_file(comm, shared_path, "pairs")
    absent = shared_path / ("absent" if comm.rank == comm.size - 1 else "same")
    with pytest.raises(InputError, match="no such file"):
        require_same_file(comm, absent, "pairs")
