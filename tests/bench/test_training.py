"""Results read from our runs and from the answers of peers, valid or not."""

import json

import pytest

from hpcgnn.bench.job import Limits
from hpcgnn.bench.training import Environment, Training, read_answer, read_run

ANSWER = {"release": "DGL 1", "imports": 100, "peak": 350, "seconds": [2, 1], "losses": [4, 3]}
LAST = (
    "peak memory above imports: 1.5 MB to 2.0 MB per rank, 3.5 MB in all; halo buffers 1 MB of 2\n"
)


def test_a_peers_answer_is_parsed():
    training = read_answer(ANSWER)
    assert training == Training([2, 1], [4, 3], 250, 250, release="DGL 1")
    scored = read_answer({**ANSWER, "scores": [None, 0.5]})
    assert scored.scores == [None, 0.5]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"problem": "out of memory"}, "out of memory"),
        ({"peak": None}, "its answer is not a JSON object of results"),
        ({"seconds": [1]}, "no epochs"),
        ({"seconds": [], "losses": []}, "no epochs"),
        ({"losses": "words"}, "its answer is not a JSON object of results"),
    ],
)
def test_a_peer_that_fails(change, problem):
    assert problem in read_answer(ANSWER | change).problem


def test_a_peer_without_its_library_reports_that(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho \'{"problem": "No module named dgl"}\'\n')
    fake.chmod(0o755)
    peers = Environment(fake, ("DGL",)).contenders(tmp_path, 1, Limits(60, 1 << 40))
    assert peers[0].train().problem == "No module named dgl"


def test_the_results_of_a_run_are_read(tmp_path):
    records = [
        {
            "epoch": e,
            "loss": 1 / e,
            "epoch_seconds": 2.0,
            "evaluate_seconds": 0.5,
            "valid": e / 4,
            "bytes_sent": {"mean": 5.0 + 5 * e},  # the last epoch also evaluates
            "forward_seconds": e,
            "pack_seconds": {"mean": 0.1},
        }
        for e in (1, 2)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines)
    (tmp_path / "starts.jsonl").write_text('{"ranks": 2}\n')
    training = read_run(tmp_path, LAST)
    assert training.seconds == [1.5, 1.5] and training.losses == [1.0, 0.5]
    assert (training.peak_bytes, training.rank_bytes, training.sent_bytes) == (3.5e6, 2e6, 20)
    assert training.scores == [0.25, 0.5]
    assert training.parts == {"forward": 2, "packing": 0.1}
    alike = read_run(tmp_path, LAST.replace("1.5 MB to ", ""))
    assert (alike.peak_bytes, alike.rank_bytes) == (3.5e6, 2e6)
    assert read_run(tmp_path, "nothing").problem == "its run wrote no results"
    assert read_run(tmp_path / "elsewhere", LAST).problem == "its run wrote no results"
