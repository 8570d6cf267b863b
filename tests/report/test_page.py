"""The page of `hpcgnn report`: complete, self-contained, and safe whatever a run holds."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hpcgnn.cli import main
from hpcgnn.report.figures import Drawing, draw
from hpcgnn.report.page import page
from hpcgnn.report.run import read_run
from hpcgnn.report.summary import per_epoch, per_rank

RANKS = 3
NAME = "<script>alert(1)</script>"


def write_run(folder: Path, lr: float = 0.01, name: str = "sage") -> Path:
    def spread(mean: float) -> dict[str, float]:
        return {"min": 0.9 * mean, "mean": mean, "max": 1.1 * mean}

    folder.mkdir()
    records = [
        {
            "epoch": epoch,
            "loss": 2 / epoch,
            "train": 0.5,
            "valid": None if epoch == 2 else 0.1 * epoch,
            "test": 0.4,
            "lr": lr,
            "metric": "accuracy",
            "epoch_seconds": 1.0,
            "forward_seconds": 0.3,
            "backward_seconds": 0.5,
            "reduce_seconds": 0.1,
            "evaluate_seconds": 0.15,
            "checkpoint_seconds": 0.25,
            "pack_seconds": spread(0.05),
            "comm_wait_seconds": spread(0.2),
            "bytes_sent": spread(1e6),
            "peak_memory_bytes": spread(1e8),
        }
        for epoch in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    seconds = {f"{part}_seconds": [0.1, 0.2, 0.3] for part in ("forward", "backward", "comm_wait")}
    rows = [[0, 5, 6], [7, 0, 9], [1, 2, 0]]
    ranks = {"epoch": 3, **seconds, "epoch_seconds": [1.0] * RANKS, "sent_to": rows}
    (folder / "ranks.jsonl").write_text(json.dumps(ranks | {"peak_memory_bytes": [1e8] * 3}) + "\n")
    start = {"time": "2026-01-01T00:00:00Z", "ranks": RANKS, "partition": {"method": name}}
    start["hosts"] = {"n1": 2, "n2": 1}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\nno json\n")
    (folder / "config.json").write_text(json.dumps({"model": {"kind": name}, "lr": lr}))
    return folder


def _inline(link: str) -> bool:
    return link.startswith(("#", "data:image/png;base64,"))


class Outside(HTMLParser):
    """A parser that finds what the page would fetch or run, and tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "figure"
        if tag in ("script", "link", "iframe", "img", "object", "embed"):
            self.found.append(tag)
        self.found += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if name.startswith("on")
            or (name.endswith(("src", "href")) and not _inline(value or ""))
        ]


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A run with its report, whose figures take seconds to draw."""
    folder = write_run(tmp_path_factory.mktemp("page") / "a&b<i>", name=NAME)
    assert main.main(["report", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_page_is_self_contained_and_shows_every_figure(reported, tmp_path, capsys):
    folder, out = reported, reported / "report"
    outside = Outside()
    outside.feed((out / "index.html").read_text())
    names = ["bytes", "learning-rate", "loss", "rank-memory", "rank-seconds", "scores", "time"]
    assert outside.found == [] and outside.figures == len(names)
    assert sorted(path.stem for path in out.glob("*.png")) == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in out.glob("*.png"))
    alone = tmp_path / "alone.html"
    assert main.main(["report", str(folder), "-o", str(alone)]) == 0
    assert f"page: {alone}" in capsys.readouterr().out
    outside = Outside()
    outside.feed(alone.read_text())
    assert outside.found == [] and outside.figures == len(names)
    assert not list(tmp_path.glob("*.png"))
    assert main.main(["report", str(folder), "-o", str(alone)]) == 2, "only by --force"


@pytest.mark.slow
def test_runs_are_compared_by_the_settings_that_differ(tmp_path, capsys):
    folders = [write_run(tmp_path / f"run{k}", lr=k / 100) for k in (1, 2)]
    args = ["report", *map(str, folders), "-o", str(tmp_path / "both.html")]
    assert main.main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("lr")] == [["lr", "0.01", "0.02"]]
    assert not any(line.startswith("kind") for line in lines)
    page = (tmp_path / "both.html").read_text()
    assert "Settings that differ" in page and page.count("<figure") == 3 + 2 * 4


@pytest.mark.slow
def test_names_from_files_are_escaped(reported):
    text = (reported / "report" / "index.html").read_text()
    outside = Outside()
    outside.feed(text)
    assert outside.found == [] and "&lt;script&gt;" in text


def test_only_our_own_pages_are_replaced_and_elsewhere_only_by_force(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hpcgnn.report.page.draw", lambda *_: [])  # takes seconds each time
    folder, out = write_run(tmp_path / "run"), tmp_path / "out"
    assert main.main(["report", str(folder)]) == 0
    assert main.main(["report", str(folder)]) == 0  # the run's own report is replaced
    asked = ["report", str(folder), "-o", str(out)]
    assert main.main(asked) == 0
    assert main.main(asked) == 2 and main.main([*asked, "--force"]) == 0
    (out / "index.html").write_text("<html>mine</html>")
    assert main.main([*asked, "--force"]) == 2
    assert "not a page of hpcgnn" in capsys.readouterr().err
    assert (out / "index.html").read_text() == "<html>mine</html>"
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    assert main.main(["report", str(folder), "-o", str(tmp_path / "link")]) == 2
    assert not list(target.iterdir())
    (tmp_path / "file").write_text("mine")
    assert main.main(["report", str(folder), "-o", str(tmp_path / "file"), "--force"]) == 2
    assert "is not a folder: name a folder, or a page" in capsys.readouterr().err


def test_a_name_that_ends_in_html_names_the_page_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hpcgnn.report.page.draw", lambda *_: [])
    folder, out = write_run(tmp_path / "run"), tmp_path / "new" / "page.html"
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    asked = ["report", str(folder), "-o", str(out)]
    assert main.main([*asked, "--open"]) == 0 and opened == [out.as_uri()]
    assert "no browser was found" in capsys.readouterr().err  # append returns None
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert main.main(asked) == 2 and main.main([*asked, "--force"]) == 0
    out.write_text("<html>mine</html>")
    assert main.main([*asked, "--force"]) == 2 and out.read_text() == "<html>mine</html>"


def test_a_full_disk_leaves_no_part_of_a_page(reported, tmp_path, capsys, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "index.html" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main.main(["report", str(reported), "-o", str(tmp_path / "page")]) == 2
    assert "page: can't be written: No space left on device\n" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_figures_written_by_others_are_not_replaced(tmp_path, capsys, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(1, 1))
    drawing = Drawing("loss", "Loss", figure)
    monkeypatch.setattr("hpcgnn.report.page.draw", lambda *_: [drawing])
    folder, out = write_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    (out / "loss.png").write_bytes(b"\x89PNG of mine")
    asked = ["report", str(folder), "-o", str(out)]
    for more in ([], ["--force"]):
        assert main.main([*asked, *more]) == 2
        assert "loss.png: exists and is not a figure of hpcgnn report" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["loss.png"]
    assert (out / "loss.png").read_bytes() == b"\x89PNG of mine"
    (out / "loss.png").unlink()
    assert main.main(asked) == 0
    (out / "index.html").unlink()
    assert main.main(asked) == 2 and main.main([*asked, "--force"]) == 0
    (out / "loss.png").write_bytes(b"\x89PNG of mine")  # beside a page of ours
    page = (out / "index.html").stat()
    assert main.main([*asked, "--force"]) == 2
    assert (out / "loss.png").read_bytes() == b"\x89PNG of mine"
    assert (out / "index.html").stat().st_mtime_ns == page.st_mtime_ns


def test_parts_of_an_epoch_add_up_to_it(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    for record in run.records:
        parts = per_epoch(record)
        assert sum(parts.values()) == pytest.approx(1.25)  # with the checkpoint
        assert min(parts.values()) >= 0 and parts["reduce"] == 0.1 and parts["evaluate"] == 0.15
        # Of 0.85 seconds of waiting and packing, 0.7 belong to the passes.
        assert parts["wait"] == pytest.approx(0.2 * 0.7 / 0.85)
    ranks = per_rank(run)
    totals = [sum(ranks[part][rank] for part in ranks) for rank in range(RANKS)]
    assert totals == pytest.approx([1.0] * RANKS)


@pytest.mark.parametrize(
    "text",
    ['{"epoch": 1, "a": [1, 2], "b": [1]}', '{"epoch": 1, "a": "x"}', '{"epoch": 1, "a": [true]}'],
)
def test_numbers_that_are_not_one_per_rank_are_refused(tmp_path, text, capsys):
    folder = write_run(tmp_path / "run")
    (folder / "ranks.jsonl").write_text(text + "\n")
    assert main.main(["report", str(folder)]) == 2
    assert "ranks.jsonl" in capsys.readouterr().err


def test_the_slowest_of_few_epochs_is_not_hidden_by_the_legend(tmp_path):
    pytest.importorskip("matplotlib")
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    slow = json.loads(lines[1]) | {"epoch_seconds": 9.0}
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], json.dumps(slow), lines[2]]) + "\n")
    time = next(each for each in draw([read_run(folder)], "accuracy") if each.name == "time")
    whole = sum(per_epoch(slow).values())
    assert time.figure.axes[0].get_ylim()[1] == pytest.approx(1.35 * whole)


def test_one_epoch_is_a_point_and_similar_losses_have_plain_tick_labels(tmp_path):
    pytest.importorskip("matplotlib")
    folder = write_run(tmp_path / "run")
    found = {each.name: each for each in draw([read_run(folder)], "macro_f1")}
    loss, scores = (found[name].figure.axes[0] for name in ("loss", "scores"))
    assert loss.get_yscale() == "linear" and scores.get_ylabel() == "macro F1"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(lines[0] + "\n")
    axes = draw([read_run(folder)], "auc")[0].figure.axes[0]
    assert axes.lines[0].get_marker() == "o" and axes.get_xticks().tolist() == [1]
    small = json.loads(lines[2]) | {"loss": 0.001}
    (folder / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1]}\n{json.dumps(small)}\n")
    assert draw([read_run(folder)], "auc")[0].figure.axes[0].get_yscale() == "log"
    least = json.loads(lines[2]) | {"loss": 1e-7}
    (folder / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1]}\n{json.dumps(least)}\n")
    axes = draw([read_run(folder)], "auc")[0].figure.axes[0]
    (low, high), ticks = axes.get_ylim(), axes.get_yticks()
    assert 4 <= sum(low <= tick <= high for tick in ticks) <= 10  # more labels would overlap


def test_wide_tables_name_their_cells(tmp_path):
    folder = write_run(tmp_path / "run")
    text = page([read_run(folder)], [])
    starts = text[text.index("<h2>Starts") :]
    starts = starts[: starts.index("</table>")]
    assert 'class="scroll wide"' in starts and '<td data-head="releases">' in starts
    assert ">2026-01-01 00:00:00 UTC</td>" in starts and ">n1 (2), n2 (1)</td>" in starts


@pytest.mark.slow
def test_figures_are_large_enough_in_a_browser(reported, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium in PATH")
    page = tmp_path / "measured.html"
    script = """<script>addEventListener("load", () => {
        const figures = [...document.querySelectorAll("figure svg")];
        const boxes = figures.map(figure => figure.getBoundingClientRect());
        document.title = JSON.stringify({wide: document.documentElement.scrollWidth,
            room: innerWidth, sizes: boxes.map(b => [b.width, b.height])}) })</script>"""
    text = (reported / "report" / "index.html").read_text()
    page.write_text(text.replace("</body>", script + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *options, "--window-size=1000,2000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = dom[dom.index("<title>") + 7 : dom.index("</title>")]
    measured = json.loads(title.replace("&quot;", '"'))
    assert measured["wide"] <= measured["room"]
    assert len(measured["sizes"]) == 7
    assert all(width > 300 and height > 100 for width, height in measured["sizes"])


def test_curves_show_where_a_run_was_resumed(tmp_path):
    run = write_run(tmp_path / "run")
    starts = [(0, 3), (2, 3), (1, 3), (2, 4), (3, 8)]  # one went back, one hasn't trained
    lines = [json.dumps({"from_epoch": epoch, "ranks": ranks}) for epoch, ranks in starts]
    (run / "starts.jsonl").write_text("\n".join(lines))
    drawings = {drawing.name: drawing for drawing in draw([read_run(run)], "accuracy")}
    for name in ("loss", "scores", "learning-rate"):
        axes = drawings[name].figure.axes[0]
        words = {text.get_text(): text.xy[0] for text in axes.texts if text.get_text() != "best"}
        assert words == {"resumed": 1.5, "resumed on 4 ranks": 2.5}
    two = draw([read_run(run), read_run(write_run(tmp_path / "other"))], "accuracy")
    names = [text.get_text() for text in two[0].figure.axes[0].get_legend().get_texts()]
    assert names == ["run", "other", "run resumed"]


def test_many_resumptions_share_one_label(tmp_path):
    run = write_run(tmp_path / "run")
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    records = [json.dumps(record | {"epoch": epoch}) for epoch in range(1, 31)]
    (run / "metrics.jsonl").write_text("\n".join(records))
    lines = [json.dumps({"from_epoch": epoch, "ranks": 3}) for epoch in range(30)]
    (run / "starts.jsonl").write_text("\n".join(lines))
    axes = draw([read_run(run)], "accuracy")[0].figure.axes[0]
    assert not axes.texts and len(axes.lines) == 30
    assert [text.get_text() for text in axes.get_legend().get_texts()][1:] == ["resumed"]


def test_special_characters_in_names_are_drawn_literally(tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    folders = [write_run(tmp_path / name) for name in ("a$\\x$\x1b[31m", "\u540d\u524d")]
    drawings = draw([read_run(folder) for folder in folders], "$\\frac$\x1b")
    for drawing in drawings:
        assert drawing.svg() and "\x1b" not in drawing.words
    assert "a$\\x$" in {each.name: each.words for each in drawings}["time-1"]
    assert [str(each.message) for each in recwarn] == []
