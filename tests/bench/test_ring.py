"""The ring benchmark, run on the ranks of the test."""

import pytest

from hpcgnn.bench import draw
from hpcgnn.bench.ring import Lane, RingReport, measure_ring
from hpcgnn.errors import InputError


@pytest.mark.mpi
def test_every_rank_gets_the_same_results(comm):
    if comm.size == 1:
        with pytest.raises(InputError, match="2 ranks or more"):
            measure_ring(comm, [1000], 1)
        return
    report = measure_ring(comm, [100, 70_000], 1)
    assert [lane.message_bytes for lane in report.lanes] == [512, 69_632]  # whole rows
    for lane in report.lanes:
        assert min(lane.ping_pong, lane.both_ways, lane.ring, lane.together_seconds) > 0
    assert len({repr(other) for other in comm.allgather(report.lanes)}) == 1


def test_overlap_is_the_hidden_share_of_the_shorter_task():
    def lane(work, exchange, together):
        return Lane(1024, 1e9, 1e9, 1e9, work, exchange, together)

    assert lane(2.0, 4.0, 4.0).overlap == 1
    assert lane(2.0, 4.0, 6.0).overlap == 0
    assert lane(2.0, 4.0, 5.0).overlap == 0.5
    report = RingReport(2, "host", [lane(2.0, 4.0, 5.0)])
    assert report.lines()[2].endswith("50 %")
    pytest.importorskip("matplotlib")
    assert len(draw.ring(report.as_json()).axes) == 2
