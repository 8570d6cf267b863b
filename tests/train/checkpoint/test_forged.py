"""Checkpoints with right checksums and wrong content are refused before anything is built."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from hpcgnn.errors import InputError
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.predict import Predictor
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
    "deep": (progress_with(best=nested(800)), "nested too deeply|best must be null"),
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
    "more": (progress_with(more={"a": {}}), "more must be a number or text"),
    "loose": (lambda found: found.arrays.update({"sharded/w": np.ones(3)}), "w: is no dataset"),
    "junk": (lambda found: found.arrays.update(junk=np.ones(3)), "junk: is no dataset"),
}
RESTORE = {
    "bool": (array(f"model/{WEIGHT}", lambda a: a > 0), "must be of type float32"),
    "uint8": (array(f"model/{WEIGHT}", lambda a: a.astype("u1")), "must be of type float32"),
    "double": (array(f"model/{WEIGHT}", lambda a: a.astype("f8")), "must be of type float32"),
    "wide": (array(f"model/{WEIGHT}", lambda a: a[:, :-1].copy()), "has shape"),
    "nan": (array(f"model/{WEIGHT}", lambda a: a * np.nan), "is not finite"),
}
RESUME = {
    "step": (array(f"{STATE}step", lambda a: -a), "no number of steps"),
    "half": (array(f"{STATE}step", lambda a: a + 0.5), "no number of steps"),
    "two": (array(f"{STATE}step", lambda a: np.ones(2, np.float32)), "has shape"),
    "shape": (array(f"{STATE}exp_avg", lambda a: a[:2].copy()), "has shape"),
    "infinite": (array(f"{STATE}exp_avg", lambda a: a + np.inf), "is not finite"),
    "type": (array(f"{STATE}exp_avg", lambda a: a.astype("i8")), "must be of type float32"),
    "square": (array(f"{STATE}exp_avg_sq", lambda a: -a - 1), "squares below 0"),
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
    graph = distribute(random_graph(40, 160, seed=1), comm, halo_buffer=65536)
    return dataclasses.replace(graph, graph_fingerprint="f" * 16)


@pytest.fixture
def run_dir(graph, tmp_path):
    configured_trainer(graph, Config.of(layers=2, hidden=8, epochs=2), tmp_path).run()
    return tmp_path


def test_contradictions_are_refused(graph, run_dir):
    path = run_dir / "checkpoints" / "epoch-000002.h5"
    whole = path.read_bytes()
    for group in (READ, RESTORE, RESUME):
        for name, (change, words) in group.items():
            path.write_bytes(whole)
            found = files.read(path)
            change(found)
            path.unlink()
            files.write(path, found)
            if group is READ:
                with pytest.raises(InputError, match=words):
                    files.read(path)
                continue
            found = files.read(path)
            config = Config.of(layers=2, hidden=8, epochs=4)
            with pytest.raises(InputError, match=words):
                configured_trainer(graph, config, run_dir, resume=True)
            if group is RESTORE:
                with pytest.raises(InputError, match=words):
                    Predictor(graph, found, path)
            assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 2, name


def test_nothing_is_built_that_is_larger_than_the_checkpoint(graph, run_dir, monkeypatch):
    path = run_dir / "checkpoints" / "best.h5"
    found = files.read(path)
    found.config = found.config.changed(model="gat", heads=8, output_heads=1 << 10)
    with pytest.raises(InputError, match="is of another model"):
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
            assert np.array_equal(files.read_sharded(path, ids)["model.e"], rows)
            continue
        with pytest.raises(InputError, match=words):
            files.read_sharded(path, ids)
