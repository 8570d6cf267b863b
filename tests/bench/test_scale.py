"""Ideal times follow from the first step and from the number of processors."""

import pytest

from hpcgnn.bench import draw
from hpcgnn.bench.epoch import EpochSettings
from hpcgnn.bench.job import Layout
from hpcgnn.bench.problem import GraphSize, ModelShape
from hpcgnn.bench.scale import ScaleReport, steps
from hpcgnn.bench.training import Training
from hpcgnn.errors import HpcgnnError

LAYOUTS = [Layout(1, 1), Layout(2, 1), Layout(4, 1)]


def training(seconds, rank_bytes):
    return Training([9.0, seconds], [2.0, 1.0], 2 * rank_bytes, rank_bytes, sent_bytes=7)


def test_ideal_times_of_strong_scaling():
    found = [[training(8, 100)], [training(5, 60)], [training(5, 40)]]
    one, two, four = steps(LAYOUTS, [GraphSize(10, 20, 1, 2)] * 3, found, cores=2)
    assert (one.ideal, two.ideal, four.ideal) == (8, 4, 4)
    assert (two.ideal_bytes, four.ideal_bytes) == (50, 25)
    assert two.seconds.median == 5 and two.losses == (2.0, 1.0)


def test_ideal_times_of_weak_scaling():
    sizes = [GraphSize(10 * p, 20 * p, 1, 2) for p in (1, 2, 4)]
    found = [[training(8, 100)], [training(9, 110)], [training(20, 130)]]
    rows = steps(LAYOUTS, sizes, found, cores=4)
    assert [row.ideal for row in rows] == [8, 8, 8]
    assert [row.ideal_bytes for row in rows] == [100, 100, 100]


def test_a_failed_step_is_one_line_and_a_failed_first_step_an_error():
    failed = [Training(problem="out of memory")]
    found = [[training(8, 100)], failed, [training(5, 40)]]
    size = GraphSize(10, 20, 1, 2)
    rows = steps(LAYOUTS, [size] * 3, found, cores=2)
    settings = EpochSettings(LAYOUTS, 1, 1)
    report = ScaleReport("strong", ModelShape("sage", 2, 8, 1), settings, rows, 2)
    assert report.lines()[3].split("  ")[-1] == "out of memory"
    assert report.lines()[-1] == "this machine has 2 cores, which the ideal takes into account"
    pytest.importorskip("matplotlib")
    assert len(draw.scale(report.as_json()).axes) == 2
    with pytest.raises(HpcgnnError, match="out of memory"):
        steps(LAYOUTS, [size] * 3, [failed, *found[1:]], cores=2)
