"""Ranks that work for rank 0, which sends them items and receives the results in order."""

from __future__ import annotations

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcgnn.errors import HpcgnnError

if TYPE_CHECKING:
    from hpcgnn.comm.communicator import Communicator

_TAG = 31_400
_AHEAD = 2  # items sent ahead to each worker
_END = -1
_WHERE = "work for rank 0"


class Workers:
    """The ranks above 0. Rank 0 calls `map` and finally `close`; the others call `serve`.

    Attributes:
        used: whether any item was sent.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.used = False
        self._next = 0  # piece
        self._results: dict[int, tuple[bool, Any]] = {}
        self._before: list[deque[tuple[int, list]]] = [deque() for _ in range(comm.size)]

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Apply `function` to `items` on the other ranks, in order; takes a few items in advance.

        Args:
            function: a function of a module, or a method or `partial` of picklable objects.

        Raises:
            Exception: the error that `function` raised, when it is the turn of its item's result.
        """
        if self._comm.size == 1:
            yield from map(function, items)
            return
        pieces: deque[int] = deque()
        for item in items:
            if len(pieces) == _AHEAD * (self._comm.size - 1):
                yield self._result(pieces.popleft())
            pieces.append(self._hand_out(function, item))
        while pieces:
            yield self._result(pieces.popleft())

    def serve(self) -> None:
        """Process the items that rank 0 sends, until it closes."""
        while (number := self._receive_length(0)) != _END:
            function, item = pickle.loads(self._receive(0, number))
            try:
                made = True, function(item)
            except HpcgnnError as error:
                made = False, error
            except Exception as error:
                traceback.print_exc()
                made = False, HpcgnnError(f"{type(error).__name__}: {error}", rank=self._comm.rank)
            _buffers, *requests = self._send(made, 0)
            self._comm.wait_all(requests, _WHERE)

    def close(self) -> None:
        """End `serve` on the other ranks; results not yet yielded are dropped."""
        end = np.array([_END])
        for peer in range(1, self._comm.size):
            while self._before[peer]:
                self._take(peer)
            self._comm.wait_all([self._comm.isend(end, peer, _TAG)], _WHERE)

    def _hand_out(self, function: Callable[[Any], Any], item: Any) -> int:
        self.used = True
        peer = 1 + self._next % (self._comm.size - 1)
        self._before[peer].append((self._next, self._send((function, item), peer)))
        self._next += 1
        return self._next - 1

    def _result(self, piece: int) -> Any:
        while piece not in self._results:
            self._take(1 + piece % (self._comm.size - 1))
        done, value = self._results.pop(piece)
        if not done:
            raise value
        return value

    def _take(self, peer: int) -> None:
        """Receive the next result of a worker."""
        piece, (_, *requests) = self._before[peer].popleft()
        self._results[piece] = pickle.loads(self._receive(peer, self._receive_length(peer)))
        self._comm.wait_all(requests, _WHERE)

    def _send(self, what: Any, peer: int) -> list:
        """Start sending; return the buffers, which must live until then, and the requests."""
        data = np.frombuffer(pickle.dumps(what, pickle.HIGHEST_PROTOCOL), np.uint8)
        buffers = [np.array([data.size]), data]
        return [buffers, *(self._comm.isend(buffer, peer, _TAG) for buffer in buffers)]

    def _receive_length(self, peer: int) -> int:
        length = np.empty(1, np.int64)
        self._comm.wait_all([self._comm.irecv(length, peer, _TAG)], _WHERE)
        return int(length[0])

    def _receive(self, peer: int, num_bytes: int) -> memoryview:
        data = np.empty(num_bytes, np.uint8)
        self._comm.wait_all([self._comm.irecv(data, peer, _TAG)], _WHERE)
        return data.data
