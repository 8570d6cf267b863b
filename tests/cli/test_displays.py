"""Progress of a command: bars on a terminal, otherwise lines with the time, or JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcgnn.cli import displays, generate
from hpcgnn.cli.amounts import amounts, brief, duration
from hpcgnn.cli.main import main
from hpcgnn.errors import InputError
from tests.cli.verbs import call


def test_amounts_are_short():
    assert [brief(n) for n in (0, 7, 1234, 12.5e6, 3.2e13)] == [
        "0",
        "7",
        "1.23 k",
        "12.5 M",
        "32 T",
    ]
    assert [duration(s) for s in (3.4, 185, 7800)] == ["3 s", "3 min 05 s", "2 h 10 min"]
    assert amounts(250, 1000, "edges", 5) == "25 % of 1 k edges, 50 edges/s, 15 s left"
    assert amounts(250, 1000, "edges", 5, short=True) == "25 %, 50 edges/s, 15 s left"
    assert amounts(250, None, "edges", 5) == "250 edges, 50 edges/s"
    assert amounts(5e6, None, "B", 2) == "5 MB, 2.5 MB/s"


def run(capsys, *argv: str) -> list[str]:
    assert main(list(argv)) == 0
    return capsys.readouterr().out.splitlines()


def test_lines_show_the_start_and_the_end_of_each_stage(capsys, tmp_path):
    argv = ["generate", "sbm", str(tmp_path / "g.h5"), "--nodes", "100"]
    argv += ["--degree", "4", "--force"]
    first, result = run(capsys, *argv)
    assert re.fullmatch(r"\d\d:\d\d:\d\d hpcgnn \S+: generate sbm \S+g.h5", first)
    assert "100 nodes" in result
    more = run(capsys, *argv, "-v")
    assert len(more) == 4 and re.search(r"make the edges: done in .* 100 % of 100 nodes", more[1])
    (only,) = run(capsys, *argv, "--quiet")
    assert "100 nodes" in only
    objects = [json.loads(line) for line in run(capsys, *argv, "--log-json")]
    assert "generate" in objects[0]["note"] and "100 nodes" in objects[-1]["note"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["g.h5", "--epochs", "3"], "train g.h5"),
        (["--resume", "runs/a"], "train --resume runs/a"),
        (["--log", "tensorboard"], "train --log tensorboard"),
        (["g.h5", "--log-json"], 'train g.h5"}'),
        (["g.h5", "-q"], ""),
        (["g.h5", "-q", "-v"], ""),  # an error, which follows
        (["g.h5", "--help-all"], ""),
    ],
)
def test_the_first_line_comes_before_the_verb_is_loaded(capsys, monkeypatch, options, wanted):
    said: list[str] = []

    def load(verb: str) -> None:
        said.append(capsys.readouterr().out.rstrip())
        raise InputError("not loaded")

    monkeypatch.setattr("hpcgnn.cli.main._module", load)
    assert main(["train", *options]) == 2
    assert said[0].endswith(wanted) and bool(said[0]) == bool(wanted)


def test_a_conversion_shows_its_stages(capsys, tmp_path):
    (tmp_path / "edges.txt").write_text("0 1\n1 2\n2 0\n")
    lines = run(capsys, "convert", str(tmp_path / "edges.txt"), str(tmp_path / "g.h5"), "-v")
    assert lines[0].endswith(f"convert {tmp_path / 'edges.txt'} {tmp_path / 'g.h5'}")
    done = [line.split(": ")[0][9:] for line in lines if ": done in " in line]
    assert done == [
        "read the edges",
        "number the nodes",
        "arrange the edges",
        "write the nodes",
        "sort and write the edges",
    ]
    assert "100 % of 3 nodes" in lines[-3]


def test_a_long_stage_reports_progress(capsys, monkeypatch):
    monkeypatch.setattr(displays, "_EVERY", -1.0)
    with displays.Lines().stage("count", 3, "sheep") as stage:
        stage.advance()
        time.sleep(0.01)
        stage.advance(2)
    lines = capsys.readouterr().out.splitlines()
    assert "33 % of 3 sheep" in lines[0] and " left, peak " in lines[0] and "done in" in lines[-1]


@pytest.mark.parametrize("kind", [displays.Lines, displays.Quiet])
def test_control_characters_in_names_are_escaped(capsys, monkeypatch, kind):
    monkeypatch.setattr(displays, "_EVERY", -1.0)
    display = kind()
    with display.stage("write \x1b[2Kp.h5"):
        pass
    with display.stage("write \x1b[2Kp.h5", 1) as stage:
        stage.advance()
    display.say("to \x1b[2Kp.h5")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.mpi
def test_only_rank_0_prints(comm, shared_path, capsys):
    call(comm, generate, "sbm", shared_path / "g.h5", "--nodes", 100, "--degree", 4)
    assert len(capsys.readouterr().out.splitlines()) == (comm.rank == 0)


def on_terminal(*command: str, folder: Path) -> str:
    """Return what a command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, stdin=theirs, cwd=folder, env=environment
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # how Linux reports that the other end is closed
            break
        if not part:
            break
        found += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, found
    return found.decode()


def test_a_terminal_gets_bars_and_keeps_its_cursor(tmp_path):
    program = (
        "import time\n"
        "from hpcgnn.cli.bars import Bars\n"
        "with Bars() as bars, bars.stage('count', 4, 'sheep') as stage:\n"
        "    for number in range(4):\n"
        "        time.sleep(0.3); stage.advance(); print('sheep', number)\n"
    )
    text = on_terminal(sys.executable, "-c", program, folder=tmp_path)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "count" in plain and " sheep/s, " in plain and "peak" in plain and "\u2501" in plain
    assert [f"sheep {n}\r\n" in plain for n in range(4)] == [True] * 4  # each line is complete
    assert "\x1b[?25l" not in text


def test_a_bar_is_gone_when_its_stage_is_over(tmp_path):
    program = (
        "import time\n"
        "from hpcgnn.cli.bars import Bars\n"
        "with Bars() as bars:\n"
        "    with bars.stage('count', 4, 'sheep') as stage:\n"
        "        stage.advance(4); time.sleep(0.3)\n"
        "    bars.say('all asleep'); time.sleep(0.3)\n"
    )
    text = on_terminal(sys.executable, "-c", program, folder=tmp_path)
    shown, asleep, rest = text.partition("all asleep")
    assert "count" in shown and asleep and "count" not in rest
