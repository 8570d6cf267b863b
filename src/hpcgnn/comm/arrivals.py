"""Received messages, also those that come while a GPU works through pieces of other work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from hpcgnn.comm.ring import Exchange

AHEAD = 2  # pieces that a GPU has been asked for and not done
NAP = 2e-5  # seconds between two looks at what no request of MPI stands for


class Arrival:
    """A received message; `rows_MF` is valid until the next one is asked for."""

    def __init__(self, exchange: Exchange, index: int, rows_MF: Tensor) -> None:
        self.index = index
        self.rows_MF = rows_MF
        self._exchange = exchange

    def reply(self, rows_MF: Tensor) -> None:
        """Send one row per received row back to the sender."""
        self._exchange.reply(self.index, rows_MF)


class Between:
    """Arrivals between pieces of work that a GPU is asked for, as early as it has time for them.

    A GPU does what it is asked for in turn. So it is asked for few pieces ahead, and messages that
    come meanwhile wait for these alone, and their slots are soon free for others.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._asked: deque[Any] = deque()  # pieces, what stands for their ends

    def arrivals(self) -> Iterator[Arrival]:
        """A piece has been asked for: what comes before there is room for another."""
        self._asked.append(self._exchange.ring.transport.mark())
        while len(self._asked) >= AHEAD and self._exchange.awaits:
            if self._asked[0].query():
                self._asked.popleft()
            elif arrival := self._exchange.if_come():
                yield arrival
            else:
                time.sleep(NAP)
