"""`hpcgnn report` on run directories, intact and damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from hpcgnn.cli import main
from hpcgnn.report import summary
from hpcgnn.report.run import read_run


def record(epoch: int, valid: float | None, seconds: float) -> dict:
    spread = {"min": 0.0, "mean": 0.1, "max": 0.2}
    return {
        "epoch": epoch,
        "loss": 1.0 / epoch,
        "train": valid,
        "valid": valid,
        "test": valid,
        "epoch_seconds": seconds,
        "forward_seconds": 0.25 * seconds,
        "backward_seconds": 0.5 * seconds,
        "comm_wait_seconds": spread,
        "bytes_sent": {"min": 1e6, "mean": 2e6, "max": 3e6},
        "peak_memory_bytes": {"min": 1e8, "mean": 2e8, "max": 1e8 * epoch},
    }


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


@pytest.mark.slow
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


def test_status_shows_how_the_run_ended(run_dir, capsys):
    (run_dir / "config.json").write_text(json.dumps({"epochs": 9}))
    assert report(run_dir, capsys)["status"].startswith("still running")
    (run_dir / "REQUEUE").touch()
    assert report(run_dir, capsys)["status"].startswith("stopped early")


@pytest.mark.slow
def test_gaps_and_repeated_records_are_reported_and_the_last_record_counts(run_dir, capsys):
    records = [record(epoch, 0.5, 1.0) for epoch in (1, 2, 2, 5, 9)]
    records[1]["loss"], records[3]["valid"] = 7.0, float("nan")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    content = report(run_dir, capsys)
    assert content["epochs_missing"] == "3-4, 6-8" and content["records_repeated"] == 1
    assert (content["epochs"], content["best_epoch"], content["best_loss"]) == (9, 1, 1.0)
    assert main.main(["report", str(run_dir)]) == 0
    text = capsys.readouterr().out
    assert "epoch 3-4, 6-8" in text and "1 records, of which the last one counts" in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_irregular_files_are_refused_without_blocking(run_dir, capsys, name, kind):
    (run_dir / name).unlink()
    if kind == "fifo":
        os.mkfifo(run_dir / name)
    elif kind == "device":
        (run_dir / name).symlink_to("/dev/zero")
    else:
        (run_dir / name).mkdir()
    assert main.main(["report", str(run_dir)]) == 2
    assert f"{name}: is not a regular file" in capsys.readouterr().err


BROKEN = {
    "absent": None,
    "empty": "",
    "torn": '{"epoch": 1, "loss": 0.',
    "other": '{"epoch": 1}\n',
    "list": "[1, 2]\n",
    "text": "epoch 1\n",
    "endless": json.dumps(record(1, 0.5, 1.0) | {"loss": 10**400}),
    "words": json.dumps(record(1, 0.5, 1.0) | {"loss": "low"}),
    "bool": json.dumps(record(1, 0.5, 1.0) | {"epoch": True}),
    "infinite": json.dumps(record(1, 0.5, 1.0) | {"epoch_seconds": float("inf")}),
    "huge": json.dumps(record(1, 0.5, 1.0) | {"epoch_seconds": 10**400}),
    "rate": json.dumps(record(1, 0.5, 1.0) | {"lr": [0.1, 0.2]}),
    "undefined": json.dumps(record(1, 0.5, 1.0) | {"reduce_seconds": float("nan")}),
    "packing": json.dumps(record(1, 0.5, 1.0) | {"pack_seconds": {"mean": float("inf")}}),
    "nested": "[" * 100_000,
    "long": json.dumps(record(1, 0.5, 1.0) | {"more": "x" * (1 << 20)}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_other_folders_are_refused_in_one_line(tmp_path, capsys, kind):
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
        assert "metrics.jsonl: line 2 was cut off" in captured.err


def test_binary_and_missing_records_are_refused(run_dir, capsys):
    (run_dir / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    assert main.main(["report", str(run_dir)]) == 2
    assert "metrics.jsonl: line 1 is not text" in capsys.readouterr().err
    (run_dir / "metrics.jsonl").unlink()
    assert main.main(["report", str(run_dir)]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_a_pipe_does_not_block(run_dir, capsys):
    for name in ("config.json", "metrics.jsonl"):
        (run_dir / name).unlink()
        os.mkfifo(run_dir / name)
        assert main.main(["report", str(run_dir)]) == 2
        assert f"{name}: is not a regular file" in capsys.readouterr().err


def test_a_run_before_its_first_epoch_is_shown(run_dir, capsys):
    (run_dir / "metrics.jsonl").write_text("")
    (run_dir / "config.json").write_text(json.dumps({"epochs": 20}))
    assert report(run_dir, capsys)["epochs"] == 0
    assert main.main(["report", str(run_dir)]) == 0
    captured = capsys.readouterr()
    assert "0 of 20" in captured.out and "no page: no epoch has ended yet" in captured.err
    assert main.main(["report", str(run_dir), str(run_dir), "--text"]) == 0
    capsys.readouterr()
    assert main.main(["report", str(run_dir), "-o", str(run_dir / "page.html")]) == 2
    assert "no page" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [0, 20])
def test_a_finished_run_must_have_records_of_its_epochs(run_dir, capsys, epochs):
    (run_dir / "metrics.jsonl").write_text("")
    (run_dir / "config.json").write_text(json.dumps({"epochs": epochs}))
    (run_dir / "ENDED").write_text("finished\n")
    assert main.main(["report", str(run_dir)]) == (2 if epochs else 0)


def test_a_broken_matplotlib_only_prevents_the_page(run_dir):
    pytest.importorskip("matplotlib")
    environment = os.environ | {"MPLBACKEND": "nothing"}
    command = [sys.executable, "-m", "hpcgnn", "report", str(run_dir)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "finished" in ended.stdout
    assert "no page: matplotlib can't be loaded" in ended.stderr and ended.stderr.count("\n") == 1


def test_a_comparison_gives_the_number_of_ranks_since_the_last_start(run_dir, tmp_path, capsys):
    runs = {}
    for name, starts in (("one", [1]), ("grown", [1, 4]), ("unknown", [])):
        runs[name] = shutil.copytree(run_dir, tmp_path.parent / f"{tmp_path.name}-{name}")
        lines = [json.dumps({"from_epoch": k, "ranks": ranks}) for k, ranks in enumerate(starts)]
        (runs[name] / "starts.jsonl").write_text("\n".join(lines) + "\n")
    assert main.main(["report", *map(str, runs.values()), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [run["ranks"] for run in content] == [1, 4, None]
    lines = summary.comparison([read_run(run) for run in runs.values()])
    place = lines[0].split().index("ranks")
    assert [line.split()[place] for line in lines[1:4]] == ["1", "4", "-"]
