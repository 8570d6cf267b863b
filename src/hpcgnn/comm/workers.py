"""Ranks that work for rank 0: it hands out pieces of work and gets the results in their order."""

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
_AHEAD = 2  # pieces that lie before each worker
_END = -1
_WHERE = "work for rank 0"


class Workers:
    """The ranks above 0. Rank 0 calls `map` and at the end `close`, each of the others `serve`.

    Attributes:
        used: whether anything was handed out.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.used = False
        self._next = 0  # piece
        self._results: dict[int, tuple[bool, Any]] = {}
        self._before: list[deque[tuple[int, list]]] = [deque() for _ in range(comm.size)]

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """As the builtin, on the other ranks; a few items are taken in advance.

        Args:
            function: of a module, or a method or `partial` of what can be pickled.

        Raises:
            Exception: what `function` raised, when the turn of its item has come.
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
        """Do what rank 0 hands out until it closes."""
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
        """Let the others go; results that nobody took are dropped."""
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
        """The next result of a worker."""
        piece, (_, *requests) = self._before[peer].popleft()
        self._results[piece] = pickle.loads(self._receive(peer, self._receive_length(peer)))
        self._comm.wait_all(requests, _WHERE)

    def _send(self, what: Any, peer: int) -> list:
        """The buffers, which must live until they are sent, and the requests."""
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
