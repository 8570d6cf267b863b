"""The comparison of epochs: order of the runs, arithmetic, one line per contender, equal losses."""

import json
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO

import numpy as np
import pytest
import torch

from hpcgnn.bench import draw, job, output, training
from hpcgnn.bench import peer as peer_script
from hpcgnn.bench.epoch import EpochSettings, compare_epochs, in_turns, standings
from hpcgnn.bench.floor import demand_of
from hpcgnn.bench.job import Ended, Layout, Limits
from hpcgnn.bench.problem import Bench, GraphSize, ModelShape, size_of
from hpcgnn.bench.training import Environment, Training
from hpcgnn.cli.main import main
from hpcgnn.errors import InputError, OutputError

LIMITS = Limits(120, 1 << 40)


@dataclass
class Fake:
    name: str
    trainings: list
    asked: list = field(default_factory=list)

    def train(self):
        self.asked.append(self.name)
        return self.trainings.pop(0)


def test_every_other_turn_runs_in_reverse_order_without_failed_contenders():
    asked = []
    well = [Training([1.0], [1.0]) for _ in range(3)]
    contenders = [
        Fake("a", list(well), asked),
        Fake("b", [Training(problem="no")], asked),
        Fake("c", list(well), asked),
    ]
    found = in_turns(contenders, 3)
    assert asked == ["a", "b", "c", "c", "a", "a", "c"]
    assert [len(taken) for taken in found.values()] == [3, 1, 3]


def test_ratios_are_of_medians_over_all_turns_without_the_first_epoch():
    ours = [Training([9, 1, 3], [4, 3, 2], 10, 5), Training([9, 2, 2], [4, 3, 2], 20, 5)]
    theirs = [Training([9, 6, 8], [4, 3.5, 2], 5), Training([9, 6, 5], [4, 3.5, 2], 7)]
    found = {"hpcgnn, 2": ours, "DGL": theirs, "PyG": [Training(problem="out of memory")]}
    first, second, third = standings(found)
    assert (first.seconds.median, first.ratio, first.off) == (2, 1, 0)
    assert (first.peak_bytes, second.peak_bytes) == (20, 7)
    assert (second.seconds.median, second.ratio, second.off, second.loss) == (6, 3, 0.5, 2)
    assert (second.seconds.least, second.seconds.most) == (5, 8)
    assert third.cells() == ["PyG", "out of memory"]


def test_the_floor_counts_products_and_gathers():
    size = GraphSize(10, 100, 4, 3)
    sage = demand_of(size, ModelShape("sage", 2, 8, 1))
    assert sage.operations == 2 * 10 * 2 * (4 * 8 * 2 + 8 * 3 * 3)
    assert sage.num_bytes == 2 * 100 * 3 * 4
    gat = demand_of(size, ModelShape("gat", 2, 8, 2))
    assert gat.operations == 2 * 10 * (4 * 8 * 2 + 8 * 6 * 3)
    assert gat.num_bytes == 2 * 100 * (8 + 6) * 4


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Return a Bench whose hpcgnn commands run in this process."""

    def ours(arguments, ranks, limits):
        out = StringIO()
        with torch.random.fork_rng(devices=[]), redirect_stdout(out):
            status = main(list(map(str, arguments)))
        return Ended(out.getvalue(), f"status {status}" if status else None)

    monkeypatch.setattr(job, "ours", ours)
    return Bench(tmp_path, LIMITS, tmp_path)


@pytest.fixture
def graph(bench):
    path = bench.folder / "g.h5"
    sizes = ["--nodes=60", "--degree=6", "--features=5", "--classes=3", "--split=80/20/0"]
    job.ours(["generate", "sbm", path, *sizes], Layout(1, 1), LIMITS)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sage", "gcn", "gat", "gatv2"])
def test_peers_start_from_our_weights_and_reach_our_losses(bench, graph, kind):
    pytest.importorskip("torch_geometric")
    shape = ModelShape(kind, 2, 8, 2)
    settings = EpochSettings([Layout(1, 1)], 2, 1, seed=3)
    report = compare_epochs(bench, graph, shape, settings, None)
    folder = bench.write_problem(graph, shape, {"epochs": 3, "lr": 0.01}, 3)
    ours = report.rows[0].loss
    for name in ("PyG CSR", "PyG edge_index"):
        problem = peer_script.GivenProblem(folder)
        found = peer_script.epochs(problem, peer_script.build(name, problem))
        assert found["losses"][-1] == pytest.approx(ours, abs=1e-5)


@pytest.mark.slow
def test_a_report_names_failed_contenders_and_can_be_plotted(bench, graph, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho a line\nexit 3\n")
    fake.chmod(0o755)
    settings = EpochSettings([Layout(1, 1)], 1, 1)
    peers = Environment(fake, ("DGL",))
    report = compare_epochs(bench, graph, ModelShape("sage", 2, 8, 1), settings, peers)
    lines = report.lines()
    assert any(line.startswith("hpcgnn, 1 rank x 1 thread") for line in lines)
    assert any(line.split() == ["DGL", "a", "line"] for line in lines)
    assert lines[-1] == "no peer could train: env/peers.sh makes an environment with peers"
    pytest.importorskip("matplotlib")
    outputs = output.Outputs(tmp_path / "r.json", tmp_path / "r.svg", force=False)
    outputs.check()
    outputs.write(report, draw.epochs)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["rows"][0]["ratio"] == 1 and content["machine"]["cores"] >= 1
    assert "<svg" in (tmp_path / "r.svg").read_text()
    with pytest.raises(InputError, match="exists already"):
        outputs.check()
    for kind in ("svg", "png", "pdf"):
        drawn = output.Outputs(tmp_path / "r.json", tmp_path / f"r.{kind}", force=True)
        output.save(draw.epochs(content), tmp_path / f"r.{kind}")
        drawn.check()


def test_files_are_kept_if_the_terminal_can_not_be_written(tmp_path, monkeypatch):
    class Found:
        def lines(self):
            return ["a line"]

        def as_json(self):
            return {"number": 1}

    def full(*lines):
        raise OutputError("standard output can't be written: No space left on device")

    monkeypatch.setattr(output, "say", full)
    with pytest.raises(OutputError, match="No space left"):
        output.Outputs(tmp_path / "r.json", None, force=False).write(Found(), draw.epochs)
    assert json.loads((tmp_path / "r.json").read_text())["number"] == 1


@pytest.mark.parametrize("name", ["r.json", "r.svg", "r.png"])
def test_files_written_by_others_are_not_replaced(tmp_path, name):
    path = tmp_path / name
    plot = None if name == "r.json" else path
    outputs = output.Outputs(None if plot else path, plot, force=True)
    for content in (b"", b"mine", b'{"machine": 1}', b'{"machine": {"cores": 2}}'):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: exists and was not written by hpcgnn bench"):
            outputs.check()
        assert path.read_bytes() == content


def test_an_unwritable_output_is_refused_before_anything_is_measured(tmp_path):
    for outputs in (
        output.Outputs(tmp_path / "no" / "r.json", None, force=True),
        output.Outputs(None, tmp_path / "no" / "r.png", force=False),
    ):
        with pytest.raises(OutputError, match="no such folder: create it first"):
            outputs.check()
    output.Outputs(tmp_path / "r.json", None, force=False).check()
    with pytest.raises(InputError, match="is named for two outputs"):
        output.Outputs(tmp_path / "r.svg", tmp_path / "r.svg", force=False).check()
    assert list(tmp_path.iterdir()) == []


def test_options_that_leave_nothing_to_count_are_told(bench, graph, monkeypatch):
    with pytest.raises(InputError, match="--options can't be divided into words: No closing"):
        EpochSettings([Layout(1, 1)], 1, 1, options="--mode 'sa")
    monkeypatch.setattr(Bench, "partitioned", lambda self, graph, ranks: graph)
    monkeypatch.setattr(job, "ours", lambda *_: Ended("", None))
    monkeypatch.setattr(training, "read_run", lambda *_: Training([1.0], [1.0]))
    shape = ModelShape("sage", 1, 8, 1)
    found = [training.Ours(bench, graph, shape, Layout(1, 1), n).train().problem for n in (1, 4)]
    assert found == [None, "trained 1 of 4 epochs: see --options"]


@pytest.mark.slow
def test_without_peers_only_hpcgnn_is_shown(bench, graph):
    settings = EpochSettings([Layout(1, 1)], 1, 1)
    report = compare_epochs(bench, graph, ModelShape("sage", 1, 8, 1), settings, None)
    assert len(report.rows) == 1 and report.lines()[-1].startswith("no peers: ")


def test_graphs_that_peers_would_read_differently_are_refused(bench, tmp_path):
    np.savez(
        tmp_path / "w.npz",
        edge_index=np.array([[0, 1], [1, 0]]),
        x=np.ones((2, 2)),
        y=np.array([0, 1]),
        edge_weight=np.array([1.0, 2.0]),
    )
    out = tmp_path / "w.h5"
    job.ours(["convert", tmp_path / "w.npz", out], Layout(1, 1), LIMITS)
    with pytest.raises(InputError, match="bench takes graphs with"):
        size_of(out)
