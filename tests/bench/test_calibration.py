"""Rates are corrected by what whole epochs take."""

from __future__ import annotations

import pytest

from hpcgnn.bench.calibration import Epoch, Factors, fitted
from hpcgnn.train.plan.seconds import Seconds


def epoch(gathers: float, others: float, factors: Factors) -> Epoch:
    """Return an epoch with messages and waiting, which are as planned."""
    planned = Seconds(others / 2, gathers, others / 4, others / 4, 0.5, 0.25, 0.25)
    return Epoch(1 + factors.gathers * gathers + factors.others * others, planned)


@pytest.mark.parametrize(("gathers", "others"), [(1.0, 1.0), (0.9, 1.4), (2.0, 1.1)])
def test_factors_are_found_again(gathers, others):
    factors = Factors(gathers, others)
    found = fitted([epoch(*parts, factors) for parts in ((1, 3), (4, 2), (0.1, 0.3))])
    assert (found.gathers, found.others) == pytest.approx((gathers, others))


def test_factors_that_noise_makes_are_bounded():
    """The more is gathered, the less it takes: no rate does that."""
    planned = Seconds(1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    more = Seconds(1.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert fitted([Epoch(20.0, planned), Epoch(1.0, more)]) == Factors(0.5, 4.0)
