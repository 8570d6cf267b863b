"""Runs that end before their last epoch, and runs without a validation score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcgnn.errors import InputError, NumericalError
from hpcgnn.report.summary import summarise
from hpcgnn.tasks import EdgeTask, LinkPrediction, MultiClass
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.scores import Monitor, Progress
from hpcgnn.train.settings import TrainingSettings
from tests.graphs import distribute, random_graph

STILL = {"model": "gcn", "layers": 2, "hidden": 4, "dropout": 0.0, "lr": 0.0, "epochs": 12}


def train(
    comm,
    folder: Path,
    *,
    resume=False,
    valid=True,
    changes=(),
    labels=None,
    features=None,
    **settings,
):
    """Train with a learning rate of 0, so that no score is better than the first."""
    whole = random_graph(40, 160, seed=1)
    if not valid:
        whole.split[whole.split == 2] = 0
    if "num_classes" in dict(changes):
        whole.labels[:] = np.minimum(whole.labels, dict(changes)["num_classes"] - 1)
    if labels is not None:
        whole.labels[whole.split == 2] = labels
    if features is not None:
        whole.features[:] = features
    graph = distribute(whole, comm)
    graph = replace(graph, graph_fingerprint="f" * 16, **dict(changes))
    trainer = configured_trainer(graph, Config.of(**(STILL | settings)), folder, resume=resume)
    trainer.run()
    comm.barrier()
    return trainer


def records(folder: Path) -> list[dict]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def status(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps({"epochs": STILL["epochs"]}))
    return str(summarise(folder)["status"])


@pytest.mark.mpi
def test_patience_counts_from_evaluation_to_evaluation(comm, shared_path, capsys):
    """The run can stop at the second evaluation at the earliest."""
    trainer = train(comm, shared_path, patience=2, eval_every=4)
    assert (trainer.epoch, trainer.progress.best_epoch) == (8, 4)
    if comm.rank == 0:
        assert "by --patience 2: no better validation score for 4 epochs" in capsys.readouterr().out
        assert status(shared_path).startswith("finished by --patience 2")
        checkpoints = shared_path / "checkpoints"
        assert files.read(checkpoints / "last.h5").epoch == 8
        assert files.read(checkpoints / "best.h5").epoch == 4


@pytest.mark.mpi
def test_a_run_ended_by_patience_is_not_continued(comm, shared_path, capsys):
    train(comm, shared_path, patience=2)
    newest = shared_path / "checkpoints" / "epoch-000003.h5"
    comm.barrier()
    written = newest.stat().st_mtime_ns
    for epochs in (12, 30):
        again = train(comm, shared_path, patience=2, epochs=epochs, resume=True)
        assert again.epoch == 3 and not again.begins
        assert comm.rank or "nothing was left to train" in capsys.readouterr().out
    comm.barrier()
    assert newest.stat().st_mtime_ns == written
    assert train(comm, shared_path, patience=4, resume=True).epoch == 5
    assert train(comm, shared_path, patience=0, resume=True).epoch == 12
    assert [record["epoch"] for record in records(shared_path)] == list(range(1, 13))


@pytest.mark.mpi
def test_patience_needs_validation(comm, shared_path):
    with pytest.raises(InputError, match="--patience 3 needs validation nodes whose accuracy is"):
        train(comm, shared_path, valid=False, patience=3)
    classes = {"changes": [("num_classes", 2)], "metric": "auc"}
    with pytest.raises(InputError, match="--patience 3 needs validation nodes whose auc is"):
        train(comm, shared_path, labels=1, patience=3, **classes)


@pytest.mark.mpi
def test_without_a_validation_score_the_last_checkpoint_is_kept(comm, shared_path, capsys):
    train(comm, shared_path, valid=False, epochs=3)
    told = capsys.readouterr()
    if comm.rank == 0:
        assert "note: no validation node has a label to score" in told.err
        assert "there is no best.h5; last.h5 is the checkpoint of epoch 3" in told.out
        assert [record["valid"] for record in records(shared_path)] == [None] * 3
        assert all(record["train"] is not None for record in records(shared_path))
        names = sorted(path.name for path in (shared_path / "checkpoints").iterdir())
        assert names == ["epoch-000003.h5", "last.h5"]
        assert status(shared_path) == "finished"


@pytest.mark.mpi
def test_a_validation_loss_needs_labels_but_no_metric(comm, shared_path):
    given = {"monitor": "valid_loss", "epochs": 3}
    trainer = train(comm, shared_path / "none", valid=False, **given)
    assert (trainer.progress.best, trainer.progress.best_epoch) == (None, 0)
    if comm.rank == 0:
        assert [record["valid_loss"] for record in records(shared_path / "none")] == [None] * 3
        assert not (shared_path / "none" / "checkpoints" / "best.h5").exists()
    with pytest.raises(InputError, match="nodes whose valid_loss is defined"):
        train(comm, shared_path / "x", valid=False, patience=2, **given)
    # A single class has a loss but no ROC AUC.
    classes = {"changes": [("num_classes", 2)], "metric": "auc", "labels": 1}
    trainer = train(comm, shared_path / "auc", **classes, **given | {"patience": 1, "epochs": 9})
    assert (trainer.epoch, trainer.progress.best_epoch) == (2, 1)
    for task in (LinkPrediction(4), EdgeTask(MultiClass(3, "accuracy"), 4)):
        with pytest.raises(InputError, match="valid_loss is for tasks on nodes: on edges and"):
            Monitor.of(TrainingSettings(monitor="valid_loss"), task)


@pytest.mark.mpi
def test_an_error_is_recorded_as_the_end_of_a_run(comm, shared_path):
    train(comm, shared_path, epochs=2)
    with pytest.raises(NumericalError):
        train(comm, shared_path, features=1e38, epochs=3, resume=True)
    comm.barrier()
    assert comm.rank or status(shared_path).startswith("failed: the loss is ")
    train(comm, shared_path, epochs=2, resume=True)
    assert comm.rank or status(shared_path) == "finished"


def test_epochs_without_a_score_do_not_count_for_patience():
    progress = Progress()
    assert not any(progress.note(epoch, None, None) for epoch in (5, 10))
    assert not progress.ran_out(1) and progress.best is None
    assert progress.note(15, 0.5, None)
    assert not progress.note(20, None, 0.1)
    assert not progress.note(25, 0.5, 0.1)
    assert progress.waited == 5 and progress.ran_out(5) and not progress.ran_out(6)
    assert not progress.ran_out(0)
    assert progress.note(27, 0.75, 0.25) and progress.waited == 0
    assert Progress.of(progress.stored(), 27, Path("c.h5")) == progress
    older = {"best": 0.5, "best_epoch": 3, "test_at_best": float("nan")}
    assert Progress.of(older, 10, Path("c.h5")) == Progress(0.5, 3, None, 7, 10)


@pytest.mark.parametrize(
    "change",
    [
        {"best": "x"},
        {"best": [0.5]},
        {"best": True},
        {"best_epoch": "9"},
        {"best_epoch": 11},
        {"best_epoch": -1},
        {"best": None},
        {"test_at_best": []},
        {"waited": 2.5},
        {"waited": 11},
    ],
)
def test_forged_progress_is_refused(change):
    good = {"best": 0.5, "best_epoch": 3, "test_at_best": None}
    with pytest.raises(InputError, match=r"^c\.h5: its progress "):
        Progress.of(good | change, 10, Path("c.h5"))
