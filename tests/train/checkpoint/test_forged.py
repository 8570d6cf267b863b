"""Checkpoints with correct checksums but wrong content are refused before anything is built."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

import hpcgnn
from hpcgnn.errors import InputError
from hpcgnn.models.settings import KINDS
from hpcgnn.nn import GCNConv
from hpcgnn.tasks.build import find_task
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.rows import read_sharded
from hpcgnn.train.checkpoint.widths import check_built_in
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.plain import encode
from hpcgnn.train.predict import Predictor
from hpcgnn.train.run import note_start
from hpcgnn.train.weights import export
from tests.graphs import distribute, random_graph

WEIGHT = "stack.convs.0.lin_l.weight"
STATE = f"optimizer/{WEIGHT}/"


def config_with(**changes: object) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        class Forged(Config):
            def to_json(self) -> str:
                return json.dumps(self.flat() | changes)

        checkpoint.config = Forged(**vars(checkpoint.config))

    return change


def progress_with(**changes: object) -> Callable[[Checkpoint], None]:
    return lambda checkpoint: checkpoint.progress.update(changes)


def array(name: str, change: Callable[[np.ndarray], object]) -> Callable[[Checkpoint], None]:
    def apply(checkpoint: Checkpoint) -> None:
        checkpoint.arrays[name] = np.asarray(change(checkpoint.arrays[name]))

    return apply


def nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


READ = {
    "deep": (progress_with(best=nested(800)), "progress is nested too deeply"),
    "deep task": (lambda found: found.task.update(kind=nested(900)), "task is nested too deeply"),
    "deep state": (lambda found: found.state.update(rate={"a": nested(900)}), "nested too deeply"),
    "layers": (config_with(layers=10**9), "--layers must be at most"),
    "many layers": (config_with(layers=10**3), "doesn't fit its [0-9]+ parameters: --layers"),
    "hidden": (config_with(hidden=1 << 16), "doesn't fit its .* parameters: --hidden"),
    "embedding": (config_with(embedding=1 << 16), "doesn't fit its .* parameters: --embedding"),
    "power": (config_with(power=10**12), "--power must be at most"),
    "nested": (config_with(layers=[[[2]]]), "--layers must be an integer"),
    "unknown": (config_with(speed=1), "unknown setting"),
    "empty": (lambda found: found.progress.clear(), "best must be null or a score"),
    "text": (progress_with(best="x"), "best must be null or a score"),
    "above": (progress_with(best=float("inf")), "best must be null or a score"),
    "nan": (progress_with(best=float("nan")), "best must be null or a score"),
    "test": (progress_with(test_at_best=[1]), "test_at_best must be null or a score"),
    "epoch": (progress_with(best_epoch="1"), "best_epoch must be an epoch"),
    "later": (progress_with(best_epoch=10**6), "best_epoch must be an epoch"),
    "bool": (progress_with(best_epoch=True), "best_epoch must be an epoch"),
    "best": (progress_with(best=1.5), "best must be a score in 0 .. 1"),
    "worst": (progress_with(best=-0.5), "best must be a score in 0 .. 1"),
    "best test": (progress_with(test_at_best=2), "test_at_best must be a score in 0 .. 1"),
    "digits": (progress_with(best=10**400), "best must be null or a score"),
    "no best": (progress_with(best=None), "best_epoch must be an epoch in 0 .. 0"),
    "evaluated": (progress_with(evaluated=0), "evaluated must be an epoch in"),
    "after": (progress_with(evaluated=3), "evaluated must be an epoch in"),
    "waited": (
        progress_with(best_epoch=1, waited=2),
        "waited must be a number of epochs in 0 .. 1",
    ),
    "waited half": (progress_with(waited=0.5), "waited must be a number of epochs"),
    "more": (progress_with(more={"a": {}}), "more must be a number or text"),
    "beyond": (lambda found: setattr(found, "epoch", 101), "but it was trained with --epochs"),
    "no wait": (lambda found: found.progress.pop("waited"), "waited must be a number of epochs"),
    "task": (lambda found: found.task.update(kind="luck"), "its task can't be"),
    "own": (lambda found: found.task.update(kind="own"), "its task can't be"),
    "decoder": (lambda found: found.task.update(decoder="none"), "its task can't be"),
    "truth as number": (lambda found: found.task.update(num_outputs=True), "its task can't be"),
    **{
        f"task without {name}": (
            lambda found, name=name: found.task.pop(name),
            "its task can't be",
        )
        for name in ("kind", "num_outputs", "metric", "target")
    },
    "more of a task": (lambda found: found.task.update(more=1), "its task can't be"),
    "graph": (lambda found: setattr(found, "graph_fingerprint", "g" * 16), "hexadecimal digits"),
    "ranks": (
        lambda found: setattr(found, "num_parts", 1 << 21),
        "num_parts must be an integer in",
    ),
    "truth": (array(f"model/{WEIGHT}", lambda a: a > 0), "must be of type float32"),
    "uint8": (array(f"model/{WEIGHT}", lambda a: a.astype("u1")), "must be of type float32"),
    "double": (array(f"model/{WEIGHT}", lambda a: a.astype("f8")), "must be of type float32"),
    "wide": (array(f"model/{WEIGHT}", lambda a: a[:, :-1].copy()), "must match its parameter"),
    "no number": (array(f"model/{WEIGHT}", lambda a: a * np.nan), "is not finite"),
    "infinite": (array(f"{STATE}exp_avg", lambda a: a + np.inf), "is not finite"),
    "shape": (array(f"{STATE}exp_avg", lambda a: a[:2].copy()), "must match its parameter"),
    "type": (array(f"{STATE}exp_avg", lambda a: a.astype("i8")), "must match its parameter"),
    "gone": (lambda found: found.arrays.pop(f"model/{WEIGHT}"), "a parameter that does not exist"),
    "loose": (lambda found: found.arrays.update({"sharded/w": np.ones(3)}), "w: is not a dataset"),
    "junk": (lambda found: found.arrays.update(junk=np.ones(3)), "junk: is not a dataset"),
}
RESUME = {
    "step": (array(f"{STATE}step", lambda a: -a), "not a number of steps"),
    "many": (array(f"{STATE}step", lambda a: a + 7), "not a number of steps"),
    "half": (array(f"{STATE}step", lambda a: a + 0.5), "not a number of steps"),
    "two": (array(f"{STATE}step", lambda a: np.ones(2, np.float32)), "has shape"),
    "square": (array(f"{STATE}exp_avg_sq", lambda a: -a - 1), "negative squares"),
    "parts": (
        lambda found: setattr(found, "num_parts", 7),
        "this run was never started on that many",
    ),
    "lack": (lambda found: found.arrays.pop(f"{STATE}exp_avg"), "only the optimizer has"),
    "extra": (
        lambda found: found.arrays.update({f"{STATE}more": np.ones(3)}),
        "only the checkpoint has",
    ),
    "none": (
        lambda found: [found.arrays.pop(n) for n in list(found.arrays) if n.startswith("opt")],
        "only the optimizer has",
    ),
}


@pytest.fixture
def graph(comm):
    whole = random_graph(40, 160, seed=1, num_relations=2, edge_width=2)
    graph = distribute(whole, comm, halo_buffer=65536)
    return dataclasses.replace(graph, graph_fingerprint="f" * 16)


@pytest.fixture
def run_dir(graph, tmp_path):
    trainer = configured_trainer(graph, Config.of(layers=2, hidden=8, epochs=2), tmp_path)
    note_start(tmp_path, graph, from_epoch=0)
    trainer.run()
    return tmp_path


@pytest.mark.slow
def test_contradictory_checkpoints_are_refused(graph, run_dir):
    path, out = run_dir / "checkpoints" / "epoch-000002.h5", run_dir / "out.pt"
    whole = path.read_bytes()
    for group in (READ, RESUME):
        for name, (change, words) in group.items():
            path.write_bytes(whole)
            found = files.read(path)
            change(found)
            path.unlink()
            files.write(path, found)
            if group is READ:
                with pytest.raises(InputError, match=words):
                    files.read(path)
                with pytest.raises(InputError, match=words):
                    export(path, out)
                assert not out.exists()
                continue
            config = Config.of(layers=2, hidden=8, epochs=4)
            with pytest.raises(InputError, match=words):
                configured_trainer(graph, config, run_dir, resume=True)
            assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 2, name


def test_an_array_that_differs_from_its_description_is_refused(graph, run_dir):
    """For a model that only a program knows, and an optimizer without moments."""
    path = run_dir / "checkpoints" / "epoch-000002.h5"
    found = files.read(path)
    found.config = found.config.changed(model="own", optimizer="sgd")
    moments = [name for name in found.arrays if name.startswith("optimizer/")]
    found.arrays = {name: array for name, array in found.arrays.items() if name not in moments}
    written = found.datasets()["plain"]
    for change in (lambda a: a.astype("f8"), lambda a: a[:-1].copy(), None):
        arrays = dict(found.arrays)
        if change is None:
            del arrays[f"model/{WEIGHT}"]
        else:
            arrays[f"model/{WEIGHT}"] = change(arrays[f"model/{WEIGHT}"])
        forged = dataclasses.replace(found, arrays=arrays)
        forged.datasets = lambda arrays=arrays: arrays | {"plain": written}
        path.unlink()
        files.write(path, forged)
        with pytest.raises(InputError, match="than it was written with"):
            export(path, run_dir / "out.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_every_model_are_read_back(graph, tmp_path, kind):
    config = Config.of(model=kind, layers=2, hidden=8, heads=2, epochs=1, optimizer="sgd")
    trainer = configured_trainer(graph, config, tmp_path)
    trainer.run()
    trainer.learned.train(False)
    path = tmp_path / "checkpoints" / "last.h5"
    predictor = Predictor(graph, files.read(path), path)
    assert torch.equal(predictor.call.output(), trainer.call.output())


@pytest.mark.parametrize("kind", ["gcn", "gatv2", "pna", "rgcn"])
def test_arrays_that_no_model_has_are_not_exported(graph, tmp_path, kind):
    """Also if all else in the file agrees with them. Which graph it was trained on is unknown."""
    config = Config.of(model=kind, layers=2, hidden=8, heads=2, epochs=1, bases=1)
    configured_trainer(graph, config, tmp_path).run()
    path, out = tmp_path / "checkpoints" / "last.h5", tmp_path / "out.pt"
    found = files.read(path)
    export(path, out)
    check_built_in(dataclasses.replace(found, task={}), path)  # as in files of earlier releases
    names = [name for name in found.arrays if name.startswith("model/")]
    taken = []
    for name in names:
        for axis, length in enumerate(found.arrays[name].shape):
            array = found.arrays[name]
            arrays = found.arrays | {name: np.concatenate([array, array.take([0], axis)], axis)}
            try:
                check_built_in(dataclasses.replace(found, arrays=arrays), path)
                taken.append(length)
            except InputError as error:
                assert "another model" in str(error), (name, axis)
    assert len(taken) <= 2 and {*taken} <= {graph.features.shape[1], 2, graph.num_relations}
    first = next(name for name in names if name.endswith("bias")).removeprefix("model/")
    shorter = {n: a[:-1].copy() for n, a in found.arrays.items() if first in n and len(a) > 1}
    files.write(path, dataclasses.replace(found, arrays=found.arrays | shorter))
    with pytest.raises(InputError, match=f"{first} has shape"):
        export(path, out, force=True)


class Scaled(torch.nn.Module):
    """A module with a scalar parameter, whose state is stored among the plain values."""

    def __init__(self, graph):
        super().__init__()
        self.conv = GCNConv(graph.features.shape[1], graph.num_classes)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, graph, x):
        return self.scale * self.conv(graph, x)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("optimizer", "scale", "momentum_buffer"), 1.5),
        (("optimizer", "scale", "momentum_buffer"), {"__kind__": "tensor", "of": [1, 2]}),
        (("rate", "groups"), [{}]),
        (("rate", "scheduler", "total_steps"), "x"),
        (("rate", "scheduler", "last_epoch"), 10**9),
        (("rate", "scheduler"), None),
        (("rate",), {}),
    ],
)
def test_unusable_optimizer_state_is_refused(graph, tmp_path, place, value):
    def train(epochs: int) -> None:
        torch.manual_seed(0)
        model = Scaled(graph)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        made: dict = {"optimizer": optimizer, "scheduler": scheduler, "run_dir": tmp_path}
        hpcgnn.Trainer(graph, model, find_task(graph), epochs=epochs, resume=True, **made).run()

    train(2)
    path = tmp_path / "checkpoints" / "epoch-000002.h5"
    found = files.read(path)
    inner = found.state
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    for other in path.parent.iterdir():
        other.unlink()
    files.write(path, found)
    with pytest.raises(InputError, match="can't be used"):
        train(4)


def train_scaled(graph, folder, epochs: int) -> list[float]:
    torch.manual_seed(0)
    model = Scaled(graph)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    trainer = hpcgnn.Trainer(
        graph,
        model,
        find_task(graph),
        epochs=epochs,
        resume=True,
        optimizer=optimizer,
        run_dir=folder,
    )
    trainer.run()
    return [*model.scale.detach().reshape(1).tolist(), *model.conv.bias.tolist()]


def test_moments_of_a_scalar_parameter_are_restored(graph, tmp_path):
    """They are checked like those of other parameters."""
    whole = train_scaled(graph, tmp_path / "whole", 4)
    train_scaled(graph, tmp_path / "parts", 2)
    path = tmp_path / "parts" / "checkpoints" / "epoch-000002.h5"
    good = files.read(path)
    assert train_scaled(graph, tmp_path / "parts", 4) == whole
    for number, value in enumerate((float("nan"), -1.0)):
        folder = tmp_path / str(number) / "checkpoints"
        folder.mkdir(parents=True)
        found = replace_number(good, "exp_avg_sq", value)
        files.write(folder / path.name, found)
        with pytest.raises(InputError, match=r"is not finite|negative squares"):
            train_scaled(graph, folder.parent, 4)


def replace_number(checkpoint: Checkpoint, key: str, value: float) -> Checkpoint:
    state = json.loads(json.dumps(checkpoint.state))
    state["optimizer"]["scale"][key] = encode(torch.tensor(value), key)
    return dataclasses.replace(checkpoint, state=state)


def test_nothing_larger_than_the_checkpoint_is_allocated(graph, run_dir, monkeypatch):
    path = run_dir / "checkpoints" / "best.h5"
    found = files.read(path)
    found.config = found.config.changed(model="gat", heads=8, output_heads=1 << 10)
    with pytest.raises(InputError, match="belongs to another model"):
        Predictor(graph, found, path)


def test_sharded_rows_that_contradict_each_other_are_refused(comm, tmp_path):
    arrays = {"model/w": np.ones((3, 2), np.float32)}
    ids, rows = np.arange(4), np.ones((4, 2), np.float32)
    progress = {"best": None, "best_epoch": 0, "test_at_best": None}
    for name, sharded, words in (
        ("twice", {"ids": np.array([0, 1, 1, 3]), "model.e": rows}, "two learned embeddings"),
        ("lacks", {"ids": ids + 1, "model.e": rows}, "no learned embedding for a node .found 0"),
        ("whole", {"ids": ids, "model.e": rows}, ""),
    ):
        path = tmp_path / f"{name}.h5"
        one = Checkpoint(1, Config.of(layers=1), "f" * 16, 1, progress, arrays, sharded)
        files.write_sharded(path, one, comm)
        if not words:
            assert np.array_equal(read_sharded(path, ids)["model.e"], rows)
            continue
        with pytest.raises(InputError, match=words):
            read_sharded(path, ids)


EMBEDDING = "inputs.embedding.weight"
ROWS = {
    "foreign": (lambda rows: rows | {"model.foreign": rows["ids"][:, None] * 1.0}, "foreign"),
    "more": (
        lambda rows: rows | {"more": rows[f"model.{EMBEDDING}"]},
        "more: belongs to a parameter",
    ),
    "ids alone": (lambda rows: {"ids": rows["ids"]}, "same number of rows|fit its"),
    "short": (lambda rows: rows | {"ids": rows["ids"][1:]}, "same number of rows|fit its"),
    "parts": (None, "must hold the rows of parts 0 .. 2"),
    "narrow": (lambda rows: {k: v[:, :1] if v.ndim > 1 else v for k, v in rows.items()}, "embed"),
    "double": (
        lambda rows: {k: v.astype("f8") if v.ndim > 1 else v for k, v in rows.items()},
        "32",
    ),
    "moment": (
        lambda rows: rows | {f"optimizer.{EMBEDDING}.exp_avg": np.ones((40, 2))},
        "must match",
    ),
    "outside": (lambda rows: rows | {"ids": rows["ids"] + 1}, "does not exist|no learned"),
    "negative": (lambda rows: rows | {"ids": rows["ids"] - 1}, "does not exist"),
    "nowhere": (lambda rows: {}, "only the model has|doesn't fit"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_another_model_are_refused(graph, comm, tmp_path, name):
    change, words = ROWS[name]
    config = Config.of(layers=2, hidden=8, embedding=4, epochs=1)
    configured_trainer(graph, config, tmp_path).run()
    path = tmp_path / "checkpoints" / "epoch-000001.h5"
    found = files.read(path)
    found.sharded = read_sharded(path, np.arange(40)) | {"ids": np.arange(40)}
    if change is None:
        found.num_parts = 3
    else:
        found.sharded = change(found.sharded)
    for other in path.parent.iterdir():
        other.unlink()
    files.write_sharded(path, found, comm)
    with pytest.raises(InputError, match=words):
        Predictor(graph, files.read(path), path)
    with pytest.raises(InputError, match=words):
        configured_trainer(graph, config.changed(epochs=2), tmp_path, resume=True)
    if name not in ("foreign", "nowhere", "narrow"):  # which only the model can tell
        with pytest.raises(InputError, match=words):
            export(path, tmp_path / "out.pt")
        assert not (tmp_path / "out.pt").exists()


def test_rows_for_a_model_without_any_are_refused(graph, comm, run_dir):
    path = run_dir / "checkpoints" / "epoch-000002.h5"
    found = files.read(path)
    rows = np.ones((40, 4), np.float32)
    found.sharded = {"ids": np.arange(40), f"model.{EMBEDDING}": rows}
    path.unlink()
    files.write_sharded(path, found, comm)
    with pytest.raises(InputError, match=f"model.{EMBEDDING}: belongs to another model"):
        Predictor(graph, files.read(path), path)
    config = Config.of(layers=2, hidden=8, epochs=4)
    with pytest.raises(InputError, match=f"model.{EMBEDDING}: belongs to another model"):
        configured_trainer(graph, config, run_dir, resume=True)
