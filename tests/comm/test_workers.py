"""Work distributed by rank 0: order, errors in their turn, several maps at once."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from hpcgnn.comm.workers import Workers
from hpcgnn.errors import HpcgnnError, InputError

pytestmark = pytest.mark.mpi


def squared(x: int) -> np.ndarray:
    if x == 7:
        raise InputError("must not be seven", file="in.txt", dataset="line 7", value=7)
    if x == 13:
        raise KeyError("thirteen")
    return np.full(1000 * x, x * x)


def test_results_and_errors_arrive_in_order(comm):
    workers = Workers(comm)
    if comm.rank > 0:
        workers.serve()
        return
    with closing(workers):
        for numbers in ([], [5], [3, 0, 6, 1, 2, 4, 5, 6, 0, 1, 2]):
            found = list(workers.map(squared, iter(numbers)))
            assert [len(one) for one in found] == [1000 * x for x in numbers]
            assert all((one == x * x).all() for one, x in zip(found, numbers, strict=True))
        assert workers.used == (comm.size > 1)
        first, second = workers.map(squared, range(1, 6)), workers.map(squared, range(1, 6))
        for x, (a, b) in enumerate(zip(first, second, strict=True), 1):
            assert (a == x * x).all() and (b == x * x).all()
        results = workers.map(squared, [5, 6, 7, 1])
        assert (next(results) == 25).all() and (next(results) == 36).all()
        with pytest.raises(InputError, match="line 7: must not be seven"):
            next(results)
        with pytest.raises(KeyError if comm.size == 1 else HpcgnnError, match="thirteen"):
            list(workers.map(squared, [13]))
        next(workers.map(squared, range(1, 6)))  # the rest is never requested
