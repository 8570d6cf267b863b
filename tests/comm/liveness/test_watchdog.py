"""A rank that does not answer: blocked, stopped or gone."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from hpcgnn.comm.liveness import watchdog
from hpcgnn.comm.liveness.heartbeat import Heartbeat, Peer
from hpcgnn.comm.liveness.location import Location
from hpcgnn.comm.liveness.watchdog import LostRank, Watchdog

LIMIT = 3.0


@pytest.fixture
def silent(monkeypatch):
    """Rank 0's watchdog, and the heartbeat of a rank 1 on another node that never answers."""
    monkeypatch.setattr(watchdog, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "WORKING_SECONDS", 0.1)
    about = Location()
    beats = [Heartbeat(rank, "127.0.0.1", about.report) for rank in range(2)]
    peers = [replace(Peer.here(b.rank, b.rank), address=b.address) for b in beats]
    peers[1] = replace(peers[1], space="elsewhere", network="elsewhere")
    beats[0].meet(peers, b"token")
    yield Watchdog(beats[0], about), beats[1]
    beats[0].stop()


def test_a_blocked_rank_is_given_ten_limits(silent, capsys):
    dog, _ = silent
    dog.examine([0, 1], "ring", LIMIT, LIMIT)
    dog.examine_silent([0, 1], "library", LIMIT, LIMIT)
    assert "does not answer, its process exists" in capsys.readouterr().err
    for examine in (dog.examine, dog.examine_silent):
        with pytest.raises(LostRank, match=r"rank 1 .* stopped answering"):
            examine([0, 1], "ring", 10 * LIMIT, LIMIT)


def test_a_rank_whose_process_is_gone_is_named_at_once(silent):
    dog, other = silent
    other._door.close()
    with pytest.raises(LostRank, match=r"rank 1 .* stopped answering"):
        dog.examine([0, 1], "ring", LIMIT, LIMIT)


def test_a_blocked_neighbour_is_given_time(silent):
    dog, other = silent
    here = dog._heartbeat.peers[0]
    dog._heartbeat.peers[1] = replace(here, rank=1, number=1, address=other.address)
    dog.examine([0, 1], "ring", LIMIT, LIMIT)
    dog._heartbeat.peers[1] = replace(dog._heartbeat.peers[1], birth="1", pid=os.getpid())
    with pytest.raises(LostRank, match="process is gone"):
        dog.examine([0, 1], "ring", LIMIT, LIMIT)
