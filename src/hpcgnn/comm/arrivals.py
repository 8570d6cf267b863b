"""Received messages, also those that come while a GPU works through pieces of other work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor

AHEAD = 2  # pieces that a GPU has been asked for and not done
NAP = 2e-5  # seconds between two looks at what no request of MPI stands for


class Receiving(Protocol):
    """What is asked of an exchange."""

    @property
    def awaits(self) -> bool: ...

    def if_come(self) -> Arrival | None: ...

    def reply(self, index: int, rows_MF: Tensor) -> None: ...


class Arrival:
    """A received message; `rows_MF` is valid until the next one is asked for."""

    def __init__(self, exchange: Receiving, index: int, rows_MF: Tensor) -> None:
        self.index = index
        self.rows_MF = rows_MF
        self._exchange = exchange

    def reply(self, rows_MF: Tensor) -> None:
        """Send one row per received row back to the sender."""
        self._exchange.reply(self.index, rows_MF)


class PiecesAhead:
    """Arrivals between pieces of work that a GPU is asked for, as early as it has time for them.

    A GPU does what it is asked for in turn. So it is asked for few pieces ahead, and messages that
    come meanwhile wait for these alone, and their slots are soon free for others.

    Args:
        mark: gives what stands for all that the GPU has been asked for so far.
    """

    def __init__(self, exchange: Receiving, mark: Callable[[], Any]) -> None:
        self._exchange, self._mark = exchange, mark
        self._asked: deque[Any] = deque()  # pieces, what stands for their ends

    def arrivals(self) -> Iterator[Arrival]:
        """A piece has been asked for: what comes before there is room for another."""
        self._asked.append(self._mark())
        while len(self._asked) >= AHEAD and self._exchange.awaits:
            if self._asked[0].query():
                self._asked.popleft()
            elif arrival := self._exchange.if_come():
                yield arrival
            else:
                time.sleep(NAP)
