"""Questions and answers between ranks, and foreign datagrams."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from dataclasses import replace

import pytest

from hpcgnn.comm.liveness.heartbeat import Heartbeat, Peer, local_address
from hpcgnn.comm.liveness.location import Location, Report
from hpcgnn.system import ProcessState

TOKEN = b"0123456789abcdef"


@pytest.fixture
def pair():
    abouts = [Location(), Location()]
    beats = [Heartbeat(rank, "127.0.0.1", about.report) for rank, about in enumerate(abouts)]
    peers = [replace(Peer.here(b.rank, b.rank), address=b.address) for b in beats]
    for beat in beats:
        beat.meet(peers, TOKEN)
    yield beats, abouts
    for beat in beats:
        beat.stop()


def test_answers_contain_the_location_of_a_rank(pair):
    beats, abouts = pair
    with abouts[1].at("epoch 12"), abouts[1].at("forward layer 1"):
        abouts[1].set_waiting("ring step 3")
        answer = beats[0].ask([0, 1], 5.0)
    assert list(answer) == [1]
    assert answer[1].place == "epoch 12, forward layer 1"
    assert answer[1].waiting == "ring step 3" and 0 <= answer[1].waited < 5
    assert any("test_answers_contain_the_location_of_a_rank" in line for line in answer[1].stack)


def test_long_texts_are_cut_and_control_characters_removed(pair):
    beats, abouts = pair
    abouts[1].at("\x1b[31m\n" + "ä" * 10_000)
    answer = beats[0].ask([1], 5.0)[1]
    assert len(answer.place) <= 160 and answer.place.isprintable()


def test_a_stopped_rank_is_missing(pair):
    beats, _ = pair
    beats[1].stop()
    start = time.monotonic()
    assert beats[0].ask([1], 0.5) == {}
    assert 0.4 < time.monotonic() - start < 3


def test_forged_and_foreign_datagrams_are_ignored(pair):
    beats, _ = pair
    question = beats[0]._seal(b"?", 1, b"")
    forged = bytes([question[0] ^ 1]) + question[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        for datagram in (forged, b"", b"?", os.urandom(1400), question[:20]):
            stranger.sendto(datagram, beats[1].address)
        stranger.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stranger.recv(2000)
    assert list(beats[0].ask([1], 5.0)) == [1]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"place": 1}', b"\xff\x00", b"[" * 1300])
def test_malformed_answers_are_ignored(pair, body):
    beats, _ = pair
    answers: dict[int, Report] = {}
    beats[0]._answers[77] = answers
    for rank in (1, -1, 99):
        beats[1].rank = rank
        beats[1]._send(beats[1]._seal(b"!", 77, body), beats[0].address)
    beats[1].rank = 1
    assert list(beats[0].ask([1], 5.0)) == [1]
    assert answers == {}


@pytest.mark.parametrize("number", [77, 1])
def test_late_and_repeated_answers_are_ignored(pair, number):
    beats, _ = pair
    for _ in range(2):
        assert list(beats[0].ask([1], 5.0)) == [1]
        answer = beats[1]._seal(b"!", number, beats[1]._own_report())
        beats[1]._send(answer, beats[0].address)
        beats[1]._send(answer, beats[0].address)
    assert beats[0]._thread.is_alive() and beats[0]._answers == {}


def test_a_rank_that_can_not_report_answers_the_next_question(pair, monkeypatch):
    beats, _ = pair
    with monkeypatch.context() as broken:
        broken.setattr(beats[1], "_own_report", lambda: 1 / 0)
        assert beats[0].ask([1], 0.3) == {}
    assert list(beats[0].ask([1], 5.0)) == [1]


def test_an_existing_process_that_does_not_answer_is_alive(pair):
    beats, _ = pair
    silent = Heartbeat(1, "127.0.0.1", Location().report)
    beats[0].peers[1] = replace(beats[0].peers[1], address=silent.address)
    assert beats[0].ask([1], 0.1) == {}
    assert beats[0].alive([1], 5.0) == {1}
    silent._door.close()
    assert beats[0].alive([1], 5.0) == set()


def test_the_thread_ends_when_stopped(pair):
    beats, _ = pair
    for beat in beats:
        beat.stop()
        beat._thread.join(5)
        assert not beat._thread.is_alive()


def test_local_addresses_are_found():
    here = Peer.here(0, 0)
    assert local_address(here, [here, replace(here, rank=1)]) == "127.0.0.1"
    there = replace(here, rank=1, host="no-such-host.invalid", network="elsewhere")
    assert socket.inet_aton(local_address(here, [here, there]))


def test_the_state_of_processes_is_read():
    here = Peer.here(0, 0)
    state = here.state()
    assert state is not None and state.letter in "RS" and state.cpu > 0
    assert replace(here, birth="1").state() is None
    assert replace(here, space="another machine").state() is None
    assert ProcessState.of(2**22 + 1) is None


def test_nested_locations_are_restored():
    about = Location()
    with about.at("epoch 1"):
        about.at("load")
        assert about.place[0] == "epoch 1, load"
        with about.at("forward"), about.at("layer 2"):
            assert about.place[0] == "epoch 1, forward, layer 2"
        about.at("loss")
        assert about.place[0] == "epoch 1, loss"
    assert about.place[0] == "start"
    with pytest.raises(KeyError), about.at("epoch 2"):
        raise KeyError
    assert about.place[0] == "epoch 2"
    about.at("clean up")
    assert about.place[0] == "clean up"


def test_the_threads_resources_are_acquired_before_it_starts(monkeypatch):
    """Otherwise its error would be a traceback that no rank notices."""

    def full() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(selectors, "DefaultSelector", full)
    with pytest.raises(OSError, match="Too many open files"):
        Heartbeat(0, "127.0.0.1", Location().report)


def test_answering_does_not_count_as_work():
    """Many questions at once don't make a rank that sleeps look busy."""
    reports = []

    def answer() -> None:
        reports.append(about.report())
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        reports.append(about.report())

    about = Location()
    thread = threading.Thread(target=answer)
    thread.start()
    thread.join()
    assert abs(reports[1].cpu - reports[0].cpu) < 0.1
