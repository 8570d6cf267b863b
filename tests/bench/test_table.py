"""Tables: medians, ranges and columns."""

import pytest

from hpcgnn.bench.table import Spread, in_columns, seconds, short, size


def test_median_and_range_of_times():
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    assert str(Spread.of([0.5])) == "0.5 s (0.5-0.5)"
    assert str(Spread.of([0.05, 0.02, 0.11])) == "50 ms (20-110)"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.179, "0.179 s"), (0.0421, "42.1 ms"), (123.4, "123 s"), (0.0, "0 ms")]
)
def test_seconds_are_formatted(value, shown):
    assert seconds(value) == shown


def test_sizes_are_formatted():
    assert [size(n) for n in (0, 999, 1_500, 2.7e9, 3e15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.7 GB",
        "3000 TB",
    ]
    assert short(0) == "0" and short(12345) == "12345"


def test_a_long_last_cell_does_not_widen_its_column():
    lines = in_columns(("", "time", "x"), [("ours", "1 s", "1.00"), ("DGL", "out of memory")])
    assert lines == ["      time     x", "ours   1 s  1.00", "DGL   out of memory"]
