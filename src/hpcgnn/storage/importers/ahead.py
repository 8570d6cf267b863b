"""Computation of the next items in further threads while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def ahead(items: Iterable[_Item], number: int = 1) -> Generator[_Item, None, None]:
    """Yield the same items, computing the next `number` while the current one is used.

    NumPy, HDF5 and Arrow let other threads run while they work. No thread is left running when
    this iterator ends or is closed. With several items ahead, neither thread waits for the other
    at every item.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1, "read ahead") as pool:
        coming = deque(pool.submit(next, iterator, end) for _ in range(number))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(cancel_futures=True)


def each_ahead(
    make: Callable[[_Item], _Made], items: Iterable[_Item], threads: int
) -> Generator[_Made, None, None]:
    """Yield `make(item)` of each item in order, computing the next ones in `threads` threads.

    At most `threads` + 1 results wait. No thread is left running at the end, as in `ahead`.
    """
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(threads, "make ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
