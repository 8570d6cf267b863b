"""Received messages, including those that arrive while a GPU works on pieces of other work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor

AHEAD = 2  # pieces that are queued on a GPU and unfinished, at most
NAP = 2e-5  # seconds between two checks of what has no MPI request


class Receiving(Protocol):
    """The interface of an exchange that receives messages."""

    @property
    def awaits(self) -> bool: ...

    def if_come(self) -> Arrival | None: ...

    def reply(self, index: int, rows_MF: Tensor) -> None: ...


class Arrival:
    """A received message; `rows_MF` is valid until the next message is requested."""

    def __init__(self, exchange: Receiving, index: int, rows_MF: Tensor) -> None:
        self.index = index
        self.rows_MF = rows_MF
        self._exchange = exchange

    def reply(self, rows_MF: Tensor) -> None:
        """Send one row per received row back to the sender."""
        self._exchange.reply(self.index, rows_MF)


class PiecesAhead:
    """Arrivals between pieces of work, which are queued on a GPU a few at a time.

    A GPU works through its queue in order. Only few pieces are therefore queued ahead: a message
    that arrives meanwhile waits for these alone, and its slot is soon free for another.

    Args:
        mark: returns an event of all work queued on the GPU so far.
    """

    def __init__(self, exchange: Receiving, mark: Callable[[], Any]) -> None:
        self._exchange, self._mark = exchange, mark
        self._asked: deque[Any] = deque()  # events of the ends of queued pieces

    def arrivals(self) -> Iterator[Arrival]:
        """Yield messages until another piece may be queued; called after each piece is queued."""
        self._asked.append(self._mark())
        while len(self._asked) >= AHEAD and self._exchange.awaits:
            if self._asked[0].query():
                self._asked.popleft()
            elif arrival := self._exchange.if_come():
                yield arrival
            else:
                time.sleep(NAP)
