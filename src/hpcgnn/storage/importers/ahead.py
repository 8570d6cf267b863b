"""Work that goes on in a second thread while its results are used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")


def ahead(items: Iterable[_Item]) -> Generator[_Item, None, None]:
    """The same items, each next one made while the one before is used.

    NumPy, HDF5 and Arrow let other threads run while they work. Nothing is left running when this
    iterator ends or is closed.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1, "read ahead") as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
