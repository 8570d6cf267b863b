"""The lines that a person, or a program, reads while a model trains."""

from __future__ import annotations

import io
import json
import re

import pytest

from hpcgnn.train.reporter import Reporter

SPREAD = {"min": 0.0, "mean": 1.5e9, "max": 2.5e9}


def record(epoch: int, **more: object) -> dict:
    return {
        "epoch": epoch,
        "loss": 123.4567,
        "train": 1.0,
        "valid": 0.12345,
        "test": None,
        "epoch_seconds": 1234.5,
        "comm_wait_seconds": {"min": 0.0, "mean": 1.0, "max": 2.0},
        "bytes_sent": SPREAD,
        "peak_memory_bytes": SPREAD,
    } | more


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("metric", "more", "shown"),
    [
        (
            "accuracy",
            {},
            "epoch   7/100  loss 123.4567  train 100.00 valid 12.35 test - %  1234.50 s",
        ),
        (
            "rmse",
            {"train": 12.5, "valid": 0.25},
            "epoch   7/100  loss 123.4567  train 12.5 valid 0.25 test -  1234.50 s",
        ),
        ("auc", {"train": None, "valid": None}, "epoch   7/100  loss 123.4567  1234.50 s"),
    ],
)
def test_a_line_fits_a_terminal_and_percent_is_for_shares(metric, more, shown):
    stream = Terminal()
    Reporter(100, metric, stream=stream).epoch(record(7, **more))
    assert stream.getvalue() == shown + "\n" and len(shown) <= 80


def test_what_is_no_terminal_gets_the_time_of_day():
    texts = {}
    for stream in (Terminal(), io.StringIO()):
        reporter = Reporter(3, "accuracy", stream=stream)
        reporter.epoch(record(1))
        reporter.say("stopping")
        texts[type(stream)] = stream.getvalue()
    assert texts[Terminal].startswith("epoch 1/3  loss") and texts[Terminal].count("\n") == 2
    time, line = texts[io.StringIO].split(" ", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time) and line == texts[Terminal]


def test_all_nothing_and_json():
    texts = {}
    for show in ("all", "nothing", "json"):
        stream = io.StringIO()
        reporter = Reporter(9, "accuracy", show, stream)
        reporter.epoch(record(1))
        reporter.say("the end")
        texts[show] = stream.getvalue()
    assert "wait 2.00 s  sent 1.5 GB/rank  peak 2.5 GB" in texts["all"]
    assert texts["nothing"] == "the end\n"
    first, last = map(json.loads, texts["json"].splitlines())
    assert first == record(1) and last["note"] == "the end"
