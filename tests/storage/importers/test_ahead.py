"""Reading ahead: the same items, the same errors, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from hpcgnn.storage.importers.ahead import ahead, each_ahead


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_reading_ahead_yields_the_same_items(number):
    assert list(ahead(iter(range(number)))) == list(range(number))


def test_the_next_item_is_prepared_while_one_is_used():
    made = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for k in range(3):
            made.release()
            yield k

    for k in ahead(items()):
        for _ in range(1 if k else 2):  # while the first is used, the second is being made
            assert k == 2 or made.acquire(timeout=10)


def test_an_error_is_raised_in_its_turn():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("at two")

    got = ahead(items())
    assert next(got) == 1
    with pytest.raises(ValueError, match="at two"):
        next(got)


def test_nothing_runs_after_it_is_closed():
    before = threading.active_count()
    with closing(ahead(iter(range(100)))) as got:
        assert next(got) == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_items_are_made_ahead_in_order_and_few_wait():
    begun: list[int] = []

    def make(k: int) -> int:
        begun.append(k)
        return k * k

    got = each_ahead(make, iter(range(50)), threads=2)
    assert [next(got) for _ in range(5)] == [0, 1, 4, 9, 16]
    got.close()
    assert len(begun) <= 5 + 3
    assert list(each_ahead(make, range(9), threads=2)) == [k * k for k in range(9)]
    assert all(not thread.name.startswith("make ahead") for thread in threading.enumerate())
