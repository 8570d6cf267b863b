"""Slabs of rows that are computed in order, while messages of earlier rows are in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from hpcgnn.comm.ring import Ring

Progress = Callable[[], None]


def nothing() -> None:
    """Do nothing: a `Progress` for when no messages are in flight."""


class InTurn:
    """Slabs of rows that a function is applied to, once each and in order."""

    def __init__(self, slabs: Iterable[slice], do: Callable[[slice], None]) -> None:
        self._slabs, self._do = deque(slabs), do

    def __len__(self) -> int:
        return len(self._slabs)

    def before(self, row: int) -> None:
        """Process all slabs that begin before this row."""
        while self._slabs and self._slabs[0].start < row:
            self._do(self._slabs.popleft())

    def rest(self, progress: Progress = nothing) -> None:
        """Process all remaining slabs; `progress`, called after each, may process more of them."""
        while self._slabs:
            self._do(self._slabs.popleft())
            progress()


def made_before(ring: Ring, make: Callable[[int], None], row: int) -> None:
    """Make rows while a message of them is packed, without counting the time as packing."""
    start = time.perf_counter()
    make(row)
    ring.pack_seconds -= time.perf_counter() - start
