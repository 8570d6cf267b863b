"""The seconds of rows and of edges in a machine file, from measured rates."""

from __future__ import annotations

import pytest

from hpcgnn.bench import machine, machine_file
from hpcgnn.bench.machine_file import MeasuredRates
from hpcgnn.train.plan.machine import Curve, Gather


def measured(width: int, seconds: dict[str, float]) -> MeasuredRates:
    """What takes these seconds per edge."""
    rates = {("sum", size, width): (width / second, 0.0) for size, second in seconds.items()}
    return MeasuredRates(
        widths=(width,),
        rows_of=machine._ROWS_OF,
        degree=machine._DEGREE,
        messages=(),
        rates=rates,
        steps=(1.0, 1.0),
        inside=[],
        between=[],
    )


def test_the_time_of_a_row_is_told_from_that_of_its_edges():
    """An edge of width 32 takes 2 ns from few rows, 3 from some, 6 from many, a row 100 ns."""
    nanoseconds = {"few": 2 + 100 / 15, "some": 3 + 100 / 15, "many": 6 + 100 / 8}
    nanoseconds["long"] = 2 + 100 / 60
    seconds = {size: value * 1e-9 for size, value in nanoseconds.items()}
    found, row = machine_file._edges_and_row(measured(32, seconds), "sum", 32)
    assert (*found, row) == pytest.approx((16e9, 32e9 / 3, 32e9 / 6, 1e-7))
    curves = tuple(Curve((32.0,), (value,)) for value in found)
    gather = Gather(curves, (4000, 30_000, 200_000), Curve((32.0,), (row,)))
    assert gather.seconds(32, 1000, 10, 1) == pytest.approx(3e-6)
    assert gather.seconds(32, 1000, 10, 30_000) == pytest.approx(4e-6)
    assert gather.seconds(32, 1000, 10, 1e6) == pytest.approx(7e-6)


def test_noise_gives_no_impossible_times():
    """Long rows that seem slower than short ones, or rows that seem to take all the time."""
    for few, many, long in ((1.0, 1.0, 2.0), (9.0, 1.0, 0.1)):
        values = {"few": few, "some": few, "many": many, "long": long}
        seconds = {size: value * 1e-9 for size, value in values.items()}
        found, row = machine_file._edges_and_row(measured(8, seconds), "sum", 8)
        assert all(0 < value < 1e12 for value in (*found, row))
