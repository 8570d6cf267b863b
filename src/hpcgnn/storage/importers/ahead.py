"""Computation of the next item in a second thread while the current one is used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")


def ahead(items: Iterable[_Item]) -> Generator[_Item, None, None]:
    """Yield the same items, computing each next one while the current one is used.

    NumPy, HDF5 and Arrow let other threads run while they work. No thread is left running when
    this iterator ends or is closed.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1, "read ahead") as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
