"""Calls of the C++ libraries: what raises within the conversion of their arguments."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hpcgnn.partition.layout.clusters import order_by_cluster
from hpcgnn.partition.layout.cover import vertex_cover
from hpcgnn.partition.layout.nearness import Adjacency, reverse_cuthill_mckee
from hpcgnn.partition.routing import group_by, sort_columns
from hpcgnn.storage.fingerprint import fingerprint, mix64

ROWS, BEGIN = np.array([1, 0, 2]), np.array([0, 1, 2, 3])
ADJACENCY = Adjacency.of(np.array([0, 1, 2, 2]), np.array([1, 0]))
CALLS = {
    "fingerprint": lambda: fingerprint("x", ROWS),
    "mix64": lambda: mix64(np.zeros(3, np.uint64)),
    "group_by": lambda: group_by(ROWS, 3),
    "sort_columns": lambda: sort_columns(BEGIN, ROWS),
    "order_by_cluster": lambda: order_by_cluster(ADJACENCY, np.arange(3)),
    "reverse_cuthill_mckee": lambda: reverse_cuthill_mckee(ADJACENCY),
    "vertex_cover": lambda: vertex_cover(BEGIN, ROWS, 3),
}


class Interrupt:
    """A profiler that raises KeyboardInterrupt when the `number`-th function is entered."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame, event, argument):
        if event == "call":
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_at_any_place_stays_one(call):
    CALLS[call]()  # libraries are loaded now
    number, ended = 0, False
    while not ended:
        number += 1
        try:
            sys.setprofile(Interrupt(number))
            CALLS[call]()
            ended = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
    assert number > 3
