"""Ranks that were told different things find out together."""

from __future__ import annotations

import pytest

from hpcgnn.comm.agreement import require_same
from hpcgnn.errors import InputError

pytestmark = pytest.mark.mpi


def test_the_same(comm):
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
