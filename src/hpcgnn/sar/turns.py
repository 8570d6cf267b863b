"""Slabs of rows that are made in turn, while messages of rows before them are on their way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from hpcgnn.comm.ring import Ring

Progress = Callable[[], None]


def nothing() -> None:
    """In place of a `Progress` where no messages are on their way."""


class InTurn:
    """Slabs of rows, to each of which something is done once, in turn."""

    def __init__(self, slabs: Iterable[slice], do: Callable[[slice], None]) -> None:
        self._slabs, self._do = deque(slabs), do

    def __len__(self) -> int:
        return len(self._slabs)

    def before(self, row: int) -> None:
        """All slabs that begin before this row."""
        while self._slabs and self._slabs[0].start < row:
            self._do(self._slabs.popleft())

    def rest(self, progress: Progress = nothing) -> None:
        """All that are left; `progress` is called after each, and may ask for more of them."""
        while self._slabs:
            self._do(self._slabs.popleft())
            progress()


def made_before(ring: Ring, make: Callable[[int], None], row: int) -> None:
    """Rows that are made as a message of them is packed, which doesn't count as packing."""
    start = time.perf_counter()
    make(row)
    ring.pack_seconds -= time.perf_counter() - start
