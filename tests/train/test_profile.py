from __future__ import annotations

import json
import os

import pytest
import torch

from hpcgnn.errors import InputError, OutputError
from hpcgnn.sar.aggregation import neighbour_sum
from hpcgnn.timeline import profiled
from hpcgnn.train.telemetry import Profile
from tests.graphs import distribute, random_graph


@pytest.mark.mpi
def test_the_profile_shows_ring_and_kernels_of_the_requested_epochs(comm, shared_path):
    graph = distribute(random_graph(2000, 20000), comm, halo_buffer=4096)
    with Profile(shared_path, comm.rank, epochs=2) as profile:
        taken = []
        for _ in range(5):
            taken.append(profiled())
            neighbour_sum(graph, graph.features)
            profile.step()
    assert taken == [False, True, True, False, False]
    trace = json.loads((shared_path / f"rank-{comm.rank:05d}.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "kernel spmm" in names or not len(graph.labels)
    # Ranks do not wait for messages that arrive in time: only packing is certain.
    packs = any(name.startswith("ring pack: sum forward") for name in names)
    assert packs == any(len(rows) for rows in graph.in_edges.send_rows)


def test_without_epochs_no_profile_is_written(tmp_path):
    with Profile(tmp_path, 0, epochs=0) as profile:
        profile.step()
        profile.step()
    assert not list(tmp_path.iterdir())


def test_an_unwritable_profile_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="profile can't be written"),
        Profile(tmp_path / "file", 0, epochs=1) as profile,
    ):
        profile.step()
        torch.ones(3).sum()
        profile.step()
    assert not profiled()


def test_a_profile_is_not_written_to_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "rank-00000.json")
    with pytest.raises(InputError, match=r"rank-00000\.json: is not a regular file"):  # noqa: SIM117
        with Profile(tmp_path, 0, epochs=1) as profile:
            profile.step()
            profile.step()
