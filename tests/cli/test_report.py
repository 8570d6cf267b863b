"""`hpcgnn report` on run directories, whole and damaged."""

from __future__ import annotations

import json
import os

import pytest

from hpcgnn.cli import main


def record(epoch: int, valid: float | None, seconds: float) -> dict:
    spread = {"min": 0.0, "mean": 0.1, "max": 0.2}
    return {
        "epoch": epoch, "loss": 1.0 / epoch, "train": valid, "valid": valid, "test": valid,
        "epoch_seconds": seconds, "forward_seconds": 0.25 * seconds,
        "backward_seconds": 0.5 * seconds, "comm_wait_seconds": spread,
        "bytes_sent": {"min": 1e6, "mean": 2e6, "max": 3e6},
        "peak_memory_bytes": {"min": 1e8, "mean": 2e8, "max": 1e8 * epoch},
    }  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    records = [record(1, 0.5, 4.0), record(2, 0.75, 1.0), record(3, None, 1.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 3, "patience": 0}))
    (tmp_path / "checkpoints").mkdir()
    for name in ("best.h5", "epoch-000003.h5", ".epoch-000002.h5.ab.tmp"):
        (tmp_path / "checkpoints" / name).touch()
    return tmp_path


def report(folder, capsys) -> dict:
    assert main.main(["report", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_are_those_of_the_records(run_dir, capsys):
    content = report(run_dir, capsys)
    assert content["status"] == "finished"
    assert (content["best_epoch"], content["best_test"], content["best_loss"]) == (2, 0.75, 0.5)
    assert content["epoch_seconds_mean"] == 2 and content["epoch_seconds_median"] == 1
    assert content["forward_share"] == 0.25 and content["backward_share"] == 0.5
    assert content["wait_share"] == pytest.approx(0.3 / 6)
    assert content["bytes_per_epoch_and_rank"] == 2e6
    assert content["peak_memory_bytes_max"] == 3e8
    assert content["checkpoints"] == ["best.h5", "epoch-000003.h5"]
    assert main.main(["report", str(run_dir)]) == 0
    text = capsys.readouterr().out
    for words in ("2, loss 0.5000", "test 75.00 %", "3 of 3", "2.0 MB per rank", "best.h5"):
        assert words in text


def test_status_tells_how_the_run_ended(run_dir, capsys):
    (run_dir / "config.json").write_text(json.dumps({"epochs": 9}))
    assert report(run_dir, capsys)["status"].startswith("running")
    (run_dir / "REQUEUE").touch()
    assert report(run_dir, capsys)["status"].startswith("stopped early")


BROKEN = {
    "absent": None,
    "empty": "",
    "torn": '{"epoch": 1, "loss": 0.',
    "other": '{"epoch": 1}\n',
    "list": "[1, 2]\n",
    "text": "epoch 1\n",
    "endless": json.dumps(record(1, 0.5, 1.0) | {"loss": 10**400}),
    "words": json.dumps(record(1, 0.5, 1.0) | {"loss": "low"}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_anything_else_is_refused_in_one_line(tmp_path, capsys, kind):
    folder = tmp_path / "run"
    if BROKEN[kind] is not None:
        folder.mkdir()
        good = json.dumps(record(1, 0.5, 1.0)) + "\n" if kind == "torn" else ""
        (folder / "metrics.jsonl").write_text(good + BROKEN[kind])
    assert main.main(["report", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"hpcgnn: error: {folder}") and captured.err.count("\n") == 1
    if kind == "torn":
        assert "metrics.jsonl: line 2 is torn" in captured.err


def test_binary_and_missing_records_are_refused(run_dir, capsys):
    (run_dir / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    assert main.main(["report", str(run_dir)]) == 2
    assert "metrics.jsonl: is no text" in capsys.readouterr().err
    (run_dir / "metrics.jsonl").unlink()
    assert main.main(["report", str(run_dir)]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(run_dir, capsys):
    for name in ("config.json", "metrics.jsonl"):
        (run_dir / name).unlink()
        os.mkfifo(run_dir / name)
        assert main.main(["report", str(run_dir)]) == 2
        assert f"{name}: is not a regular file" in capsys.readouterr().err
