"""Each setting changed when a run is resumed, and options that contradict it in `predict`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hpcgnn.cli import generate, predict, train
from hpcgnn.errors import InputError
from hpcgnn.settings import DEFINING, flag
from hpcgnn.train.config import options
from tests.cli.verbs import call

SETTINGS = options()
# Values that the declaration doesn't give: those that fit a run of `sage` on classes.
VALUES: dict[str, object] = {
    "aggr": "max",
    "model_args": "width=4",
    "ignore": "weights",
    "class_weights": "balanced",
    "param_groups": "*.bias:weight_decay=0.1",
    "monitor": "valid_loss",
    "halo_buffer": "1MiB",
    "device": "cpu",
    "transport": "staged",
    "metric": "f1",
    "task": "values",
}
# Refused before the checkpoint is read, or without a GPU; the message names the setting too.
OTHERWISE = {
    "model_args": "--model-args is for a --model of your own",
    "split": "has 1 split, none with this number",
    "target": "no array of this name",
    "positive_weights": "--positive-weights is for --task",
    **{
        name: f"{flag(name)} is for --task"
        for name in ("loss", "huber_delta", "node_weights", "decoder", "pair_width")
    },
    **{
        name: f"{flag(name)} is for --task links"
        for name in ("negatives", "ranked_against", "hits_at")
    },
}


def other(name: str) -> object:
    """Return another value than the default."""
    setting = SETTINGS[name].setting
    if name in VALUES:
        return VALUES[name]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
        return setting.default + (0.25 if isinstance(setting.default, float) else 4)
    return "balanced" if "weights" in name else "other"


def option(name: str) -> list[object]:
    default = SETTINGS[name].setting.default
    if isinstance(default, bool):
        return [flag(f"no_{name}" if default else name)]
    return [flag(name), other(name)]


@pytest.fixture
def run(comm, shared_path) -> tuple[Path, Path]:
    """A graph, and a run of one epoch."""
    graph, folder = shared_path / "g.h5", shared_path / "run"
    size = ["--nodes", 60, "--degree", 4, "--features", 5, "--classes", 3]
    call(comm, generate, "sbm", graph, *size)
    small = ["--layers", 1, "--hidden", 8, "--device", "cpu"]
    call(comm, train, graph, "--run-dir", folder, "--epochs", 1, *small)
    return graph, folder


@pytest.mark.slow
def test_each_setting_is_refused_by_name_or_accepted_as_declared(comm, run, monkeypatch, capfd):
    graph, first = run
    monkeypatch.chdir(graph.parent)
    config = (first / "config.json").read_text()
    for name, place in SETTINGS.items():
        again = first.with_name(f"run-{name}")
        shutil.copytree(first, again)
        given = [graph, "--run-dir", again, "--resume", *option(name)]
        given += [] if name == "epochs" else ["--epochs", 2]
        capfd.readouterr()
        if place.setting.resume == DEFINING or name in OTHERWISE:
            words = OTHERWISE.get(name, rf"was trained with .*{flag(name).removeprefix('--')}")
            with pytest.raises(InputError, match=words):
                call(comm, train, *given)
            assert (again / "config.json").read_text() == config, name
            assert len((again / "metrics.jsonl").read_text().splitlines()) == 1, name
        else:
            call(comm, train, *given)
            out = capfd.readouterr()
            assert "resuming after epoch 1 from " in out.out, name
            assert len((again / "metrics.jsonl").read_text().splitlines()) >= 2, name
        shutil.rmtree(again)


def test_missing_initial_weights_are_refused_when_a_run_is_resumed(comm, run, capfd):
    graph, folder = run
    given = [graph, "--run-dir", folder, "--resume", "--epochs", 2, "--init-from"]
    metrics = (folder / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match=r"gone\.pt: no such file"):
        call(comm, train, *given, "gone.pt")
    junk = folder / "junk.pt"
    junk.write_text("of no model")
    with pytest.raises(InputError, match="can't be read as tensors by name"):
        call(comm, train, *given, junk)
    assert (folder / "metrics.jsonl").read_text() == metrics


def test_predict_refuses_options_that_contradict_the_checkpoint(comm, run, tmp_path):
    graph, folder = run
    out = tmp_path / "out.h5"
    wide = tmp_path / "wide.h5"
    size = ["--nodes", 60, "--degree", 4, "--features", 9, "--classes", 3, "--seed", 1]
    call(comm, generate, "sbm", wide, *size)
    for given, words in (
        ([graph, "--model", "net.py:Net"], "--model is for a checkpoint of a model of your own"),
        ([graph, "--model-args", "width=4"], "--model-args is for a checkpoint of a model of y"),
        ([graph, "--split", 3], "has 1 split, none with this number"),
        ([wide], "was trained on another graph"),
        ([wide, "--any-graph"], r"has shape \(.*, 5\), the model needs \(.*, 9\)"),
    ):
        with pytest.raises(InputError, match=words):
            call(comm, predict, given[0], folder, "-o", out, *given[1:])
        assert not out.exists()
