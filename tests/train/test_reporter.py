"""The lines that a person, or a program, reads while a model trains."""

from __future__ import annotations

import io
import json

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
            "epoch   7/100  loss 123.4567  train 100.00  valid 12.35  test - %  1234.50 s",
        ),
        (
            "rmse",
            {"train": 12.5, "valid": 0.25},
            "epoch   7/100  loss 123.4567  train 12.5  valid 0.25  test -  1234.50 s",
        ),
        ("auc", {"train": None, "valid": None}, "epoch   7/100  loss 123.4567  1234.50 s"),
    ],
)
def test_a_line_fits_a_terminal_and_percent_is_for_shares(metric, more, shown):
    stream = io.StringIO()
    Reporter(100, metric, stream=stream).epoch(record(7, **more))
    assert stream.getvalue() == shown + "\n" and len(shown) <= 80


def test_a_terminal_shows_one_line_that_changes():
    stream = Terminal()
    reporter = Reporter(3, "accuracy", stream=stream)
    for epoch in (1, 2):
        reporter.epoch(record(epoch))
    reporter.say("stopping")
    reporter.epoch(record(3))
    reporter.say("done")
    text = stream.getvalue()
    assert text.count("\r") == 2 and text.count("\n") == 4
    assert "\nstopping\n" in text and text.endswith("\ndone\n") and not text.endswith("\n\ndone\n")


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
