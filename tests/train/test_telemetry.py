"""Measurements of an epoch, and the lines that are shown."""

from __future__ import annotations

import io
import json
import os
import re
import resource

import pytest

from hpcgnn.errors import InputError
from hpcgnn.train.journal import Best, Journal, gaps
from hpcgnn.train.telemetry import Reporter

SPREAD = {"min": 0.0, "mean": 1.5e9, "max": 2.5e9}


def record(epoch: int, **more: object) -> dict[str, object]:
    return {"epoch": epoch, "loss": 1.0 / epoch, "valid": None} | more


def text(*records: dict[str, object]) -> str:
    return "".join(json.dumps(found) + "\n" for found in records)


def epochs(path) -> list[int]:
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_records_lost_to_a_full_disk_are_written_once_there_is_space(path, capfd):
    journal = Journal(path, 0)
    journal.write(record(1, more="x" * 4000))  # captured messages are files too
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        for epoch in (2, 3):
            journal.write(record(epoch))
        assert epochs(path) == [1], "nothing torn is left"
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capfd.readouterr().err
    assert err.count("not recorded: File too large") == 2 and "no record of epoch 2-3" in err
    journal.write(record(4))
    assert epochs(path) == [1, 2, 3, 4]
    journal.close()
    assert capfd.readouterr().err == ""


def test_an_intact_journal_is_not_rewritten(path):
    path.write_text(text(record(1), record(2)))
    before = path.stat().st_ino
    Journal(path, 2).write(record(3))
    assert path.stat().st_ino == before and epochs(path) == [1, 2, 3]


def test_damaged_lines_are_dropped_and_reported(path, capfd):
    torn = '{"epoch": 5, "lo'
    bad = '{"epoch": true}\n' + "[" * 99_999 + "\n" + '{"epoch": -1}\n[2]\n\xff\n'
    path.write_text(text(record(1), record(2), record(2, loss=7.0), record(4)) + bad + torn)
    Journal(path, 6).write(record(7))
    assert epochs(path) == [1, 2, 4, 7]
    assert json.loads(path.read_text().splitlines()[1])["loss"] == 7.0
    err = capfd.readouterr().err
    assert "6 lines cut off, or no record of an epoch" in err and "no record of epoch 3, 5-6" in err


@pytest.mark.parametrize("content", [None, ""])
def test_a_missing_journal_is_reported(path, capfd, content):
    if content is not None:
        path.write_text(content)
    Journal(path, 6).write(record(7))
    assert epochs(path) == [7] and "no record of epoch 1-6" in capfd.readouterr().err


def test_a_journal_without_records_is_not_emptied_if_a_checkpoint_exists(path):
    path.write_bytes(text(*map(record, range(1, 7))).replace("\n", "\r").encode())
    before = path.read_bytes()
    with pytest.raises(InputError, match="holds no record of an epoch"):
        Journal(path, 6)
    assert path.read_bytes() == before


def test_later_epochs_are_dropped_where_they_are_trained_again(path):
    path.write_text(text(*map(record, range(1, 7))))
    with pytest.raises(InputError, match=r"records 6 epochs, of which those after 2 would be lost"):
        Journal(path, 2, until=5)
    assert epochs(path) == [1, 2, 3, 4, 5, 6]
    Journal(path, 2, until=6)
    assert epochs(path) == [1, 2]


def test_only_a_run_that_ended_before_its_first_checkpoint_starts_again(path, capfd):
    config = path.with_name("config.json")
    early, later = {"checkpoint": 0, "valid": 0.5}, {"checkpoint": 2, "valid": 0.5}
    for settings, more, again in (
        ({"epochs": 9}, early, True),
        ({"epochs": 9}, {}, True),
        ({"epochs": 9}, later, False),
        ({"epochs": 9}, {"valid": 0.5}, False),
        ({"epochs": 3}, early, False),
        ({"epochs": True}, early, False),
        (None, early, False),
    ):
        path.write_text(text(*(record(epoch, **more) for epoch in range(1, 4))))
        config.write_text(json.dumps(settings)) if settings else config.unlink()
        if again:
            Journal(path, 0)
            assert epochs(path) == [] and "starting again at epoch 1" in capfd.readouterr().err
            continue
        with pytest.raises(InputError, match="records 3 epochs, but no checkpoint is left"):
            Journal(path, 0)
        assert epochs(path) == [1, 2, 3]


def test_records_of_another_run_are_refused(path):
    lines = text(record(1, valid=0.5, best_epoch=1), record(2, valid=0.4, best_epoch=1))
    path.write_text(lines)
    Journal(path, 2, best=Best(1, "valid", 0.5))
    Journal(path, 2, best=Best(1, None, 0.7))
    for best, words in (
        (Best(2, "valid", 0.5), "epoch 2 has best_epoch 1, the checkpoint 2"),
        (Best(1, "valid", 0.75), r"epoch 1 has valid 0\.5, the checkpoint 0\.75"),
    ):
        with pytest.raises(InputError, match=f"is of another run: {words}: restore"):
            Journal(path, 2, best=best)
        assert path.read_text() == lines


@pytest.mark.parametrize("kind", ["fifo", "endless", "folder", "sparse", "foreign"])
def test_irregular_journals_are_refused_without_blocking(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.write_text('{"step": 1}\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: (is not a regular|holds no record)"):
        Journal(path, 0)


def test_gaps_between_epochs():
    assert gaps([], 0) == gaps([1, 2], 2) == ""
    assert gaps([], 1 << 40) == f"1-{1 << 40}"
    assert gaps([2, 4, 6, 8, 10, 12, 14], 14) == "1, 3, 5, 7, 9 and 2 more"


def shown_record(epoch: int, **more: object) -> dict:
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
        (
            "mrr",
            {"train": 1.0, "valid": 0.0536},
            "epoch   7/100  loss 123.4567  train 1.0000 valid 0.0536 test -  1234.50 s",
        ),
        ("auc", {"train": None, "valid": None}, "epoch   7/100  loss 123.4567  1234.50 s"),
    ],
)
def test_a_line_fits_a_terminal_and_percent_is_for_shares(metric, more, shown):
    stream = Terminal()
    Reporter(100, metric, stream=stream).epoch(shown_record(7, **more))
    assert stream.getvalue() == shown + "\n" and len(shown) <= 80


def test_output_that_is_not_a_terminal_gets_the_time_of_day():
    texts = {}
    for stream in (Terminal(), io.StringIO()):
        reporter = Reporter(3, "accuracy", stream=stream)
        reporter.epoch(shown_record(1))
        reporter.say("stopping")
        texts[type(stream)] = stream.getvalue()
    assert texts[Terminal].startswith("epoch 1/3  loss") and texts[Terminal].count("\n") == 2
    time, line = texts[io.StringIO].split(" ", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time) and line == texts[Terminal]


def test_control_characters_in_messages_are_escaped():
    stream = io.StringIO()
    Reporter(3, "accuracy", stream=stream).say("to continue: train --resume runs/\x1b[2Ka")
    assert stream.getvalue() == "to continue: train --resume runs/\\x1b[2Ka\n"


def test_the_display_modes_all_nothing_and_json():
    texts = {}
    for show in ("all", "nothing", "json"):
        stream = io.StringIO()
        reporter = Reporter(9, "accuracy", show, stream)
        reporter.epoch(shown_record(1))
        reporter.say("the end")
        texts[show] = stream.getvalue()
    assert "wait 2.00 s  sent 1.5 GB/rank  peak 2.5 GB" in texts["all"]
    assert texts["nothing"] == "the end\n"
    first, last = map(json.loads, texts["json"].splitlines())
    assert first == shown_record(1) and last["note"] == "the end"
