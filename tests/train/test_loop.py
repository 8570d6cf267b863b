"""Training over any number of ranks: the same curve, repeatable to the bit, resumable anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from mpi4py import MPI

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, NumericalError, OutOfMemoryError, OutputError
from hpcgnn.storage.write import atomic
from hpcgnn.train.checkpoint.file import Checkpoint, write_sharded
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.stop import StopRequest
from tests.graphs import Whole, distribute, random_graph

pytestmark = pytest.mark.mpi
MODELS = [
    {"model": "sage", "norm": "batch", "residual": True},
    {"model": "gcn", "norm": "layer", "head": "linear", "jumping": "cat"},
    {"model": "gat", "attention_dropout": 0.3, "heads": 2, "norm": "graph", "activation": "elu"},
    {"model": "sage", "embedding": 3, "labels_as_input": 0.5},
]


def settings(**changes: object) -> Config:
    base = {
        "layers": 3,
        "hidden": 8,
        "dropout": 0.4,
        "epochs": 9,
        "eval_every": 3,
        "checkpoint_every": 3,
        "halo_buffer": "4096",
        "weight_decay": 1e-4,
        "lr": 5e-3,
    }
    return Config.of(**(base | changes))


def run(whole, comm, folder, *, resume=False, owner=None, **changes):
    """Train; return the losses by epoch and all parameters that every rank holds."""
    graph = distribute(whole, comm, owner=owner, halo_buffer=4096)
    graph = replace(graph, graph_fingerprint="f" * 16)
    trainer = configured_trainer(graph, settings(**changes), folder, resume=resume)
    trainer.run()
    comm.barrier()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = {record["epoch"]: record["loss"] for record in map(json.loads, lines)}
    by_rank = [json.loads(line) for line in (folder / "ranks.jsonl").open()]
    assert [record["epoch"] for record in by_rank] == list(losses)
    return losses, torch.cat([p.detach().flatten() for p in trainer.replicated])


def test_a_lack_of_memory_is_explained(comm, shared_path, monkeypatch):
    """By the trainer itself, as by the command; also recorded in the run directory."""
    graph = distribute(random_graph(30, 90), comm)
    trainer = configured_trainer(graph, settings(), shared_path)

    def lacks(epoch):
        raise RuntimeError("can't allocate memory: you tried to allocate 8000000000 bytes.")

    monkeypatch.setattr(trainer, "_epoch", lacks)
    with pytest.raises(OutOfMemoryError, match=r"8\.0 GB of host memory"):
        trainer.run()


@dataclass(frozen=True)
class Undisturbed:
    """A model of MODELS, its graph, and the result of training it on the ranks of these tests."""

    model: dict[str, object]
    whole: Whole
    losses: dict[int, float]
    parameters: torch.Tensor


@pytest.fixture(scope="module")
def trained() -> dict[int, Undisturbed]:
    return {}


@pytest.fixture
def undisturbed(comm, shared_path, trained) -> Callable[[int], Undisturbed]:
    """Return `undisturbed(2)`: the run of MODELS[2], trained when first requested."""

    def train(number: int) -> Undisturbed:
        if number not in trained:
            whole = random_graph(60, 240, seed=1, symmetric=number % 2 == 0)
            found = run(whole, comm, shared_path / "undisturbed", **MODELS[number])
            trained[number] = Undisturbed(MODELS[number], whole, *found)
        return trained[number]

    return train


NUMBERS = pytest.mark.parametrize(
    "number", range(len(MODELS)), ids=["-".join(map(str, model.values())) for model in MODELS]
)


@pytest.mark.several_ranks
@NUMBERS
def test_the_training_curve_does_not_depend_on_ranks(
    comm, shared_path, tmp_path, undisturbed, number
):
    known = undisturbed(number)
    expected, _ = run(known.whole, Communicator(MPI.COMM_SELF), tmp_path, **known.model)
    assert known.losses.keys() == expected.keys() == set(range(1, 10))
    block = (np.arange(60) * comm.size // 60).astype(np.int32)
    other, _ = run(known.whole, comm, shared_path, owner=block, **known.model)
    for losses in (known.losses, other):
        np.testing.assert_allclose(list(losses.values()), list(expected.values()), atol=1e-4)


@NUMBERS
def test_resumed_run_is_bit_identical(comm, shared_path, undisturbed, number):
    """So is a repeated run: only seeds decide."""
    known = undisturbed(number)
    cut, _ = run(known.whole, comm, shared_path, **known.model, epochs=6)
    assert list(cut.values()) == list(known.losses.values())[:6]
    resumed, same = run(known.whole, comm, shared_path, **known.model, resume=True)
    assert resumed == known.losses
    assert torch.equal(known.parameters, same)


@pytest.mark.several_ranks
def test_a_run_of_several_ranks_is_resumed_on_one(comm, shared_path, undisturbed):
    """A checkpoint of P ranks is continued on one rank, within rounding."""
    known = undisturbed(3)
    run(known.whole, comm, shared_path, **known.model, epochs=6)
    if comm.rank == 0:
        alone = Communicator(MPI.COMM_SELF)
        resumed, _ = run(known.whole, alone, shared_path, **known.model, resume=True)
        found = list(resumed.values())
        np.testing.assert_allclose(found, list(known.losses.values()), atol=1e-4)
    comm.barrier()


def test_a_damaged_newest_checkpoint_is_skipped(comm, shared_path, undisturbed, capfd):
    known = undisturbed(0)
    run(known.whole, comm, shared_path, **known.model, epochs=6)
    if comm.rank == 0:
        newest = shared_path / "checkpoints" / "epoch-000006.h5"
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    comm.barrier()
    resumed, same = run(known.whole, comm, shared_path, **known.model, resume=True)
    assert resumed == known.losses
    assert torch.equal(known.parameters, same)
    if comm.rank == 0:
        assert "epoch-000006.h5" in capfd.readouterr().err


@pytest.mark.several_ranks
@pytest.mark.parametrize(("norm", "residual"), [("batch", True), ("graph", False)])
def test_a_bias_before_a_norm_does_not_drift(comm, shared_path, tmp_path, norm, residual):
    """Its gradient is 0 in theory, and Adam turns any noise into steps: 30 epochs, any ranks."""
    whole = random_graph(60, 240, seed=1)
    given = {
        "norm": norm,
        "residual": residual,
        "epochs": 30,
        "eval_every": 30,
        "dropout": 0,
        "weight_decay": 0,
        "checkpoint_every": 0,
    }
    one, _ = run(whole, Communicator(MPI.COMM_SELF), tmp_path, **given)
    losses, _ = run(whole, comm, shared_path, **given)
    if comm.rank == 0:
        np.testing.assert_allclose(list(losses.values()), list(one.values()), atol=2e-5)


def test_another_model_or_graph_is_refused(comm, shared_path):
    whole = random_graph(60, 240, seed=1)
    run(whole, comm, shared_path / "a", **MODELS[0], epochs=2)
    with pytest.raises(InputError, match=r"trained with --hidden 8, not --hidden 16: .*--run-dir"):
        run(whole, comm, shared_path / "a", **MODELS[0], hidden=16, resume=True)
    graph = distribute(whole, comm, halo_buffer=4096)
    graph = replace(graph, graph_fingerprint="0" * 16)
    with pytest.raises(InputError, match="another graph"):
        configured_trainer(graph, settings(**MODELS[0]), shared_path / "a", resume=True)


def test_records_of_another_run_are_not_continued(comm, shared_path):
    whole, model = random_graph(60, 240, seed=1), MODELS[0]
    for name, seed in (("a", 0), ("b", 1)):
        run(whole, comm, shared_path / name, **model, epochs=6, seed=seed)
    journal = shared_path / "a" / "metrics.jsonl"
    if comm.rank == 0:
        shutil.copy(shared_path / "b" / "metrics.jsonl", journal)
    comm.barrier()
    with pytest.raises(InputError, match=r"a/metrics\.jsonl: is of another run"):
        run(whole, comm, shared_path / "a", **model, resume=True)
    comm.barrier()
    assert journal.read_bytes() == (shared_path / "b" / "metrics.jsonl").read_bytes()


def test_missing_labels_and_non_finite_losses_are_reported(comm, shared_path):
    with pytest.raises(InputError, match="no training node"):
        run(random_graph(9, 20, unlabelled=True), comm, shared_path / "a")
    whole = random_graph(9, 20)
    whole.features[:] = 1e38
    with pytest.raises(NumericalError, match="epoch 1"):
        run(whole, comm, shared_path / "b", model="sage")


def test_a_deleted_run_directory_is_reported_in_one_line(comm, shared_path):
    folder = shared_path / "run"
    graph = distribute(random_graph(30, 90, seed=3), comm, halo_buffer=4096)
    graph = replace(graph, graph_fingerprint="f" * 16)
    stop = StopRequest()
    stop.reason = "SIGUSR1"
    trainer = configured_trainer(graph, settings(), folder, stop=stop)
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(folder)
    comm.barrier()
    words = r"run/REQUEUE: can't be written \(No such file or directory\).* after epoch 1$"
    with pytest.raises(OutputError, match=words):
        trainer.run()


def test_unwritable_sharded_rows_are_an_error_on_all_ranks(comm, shared_path):
    arrays, sharded = {"model/w": np.ones(3, np.float32)}, {"ids": np.arange(2)}
    found = Checkpoint(1, Config(), "f" * 16, 1, {"best": None}, arrays, sharded)
    with pytest.raises(OutputError, match="absent: no such folder"):
        write_sharded(shared_path / "absent" / "c.h5", found, comm)
    write_sharded(shared_path / "c.h5", found, comm)
    comm.barrier()
    assert [entry.name for entry in shared_path.iterdir()] == ["c.h5"]


def test_sharded_checkpoints_are_retried_by_all_ranks(comm, shared_path, monkeypatch):
    def checkpoint(epoch: int) -> Checkpoint:
        sharded = {"ids": np.array([comm.rank]), "model.e": np.ones((1, 2), np.float32)}
        arrays = {"model/w": np.ones(3, np.float32)} if comm.rank == 0 else {}
        progress = {"best": None, "best_epoch": 0, "test_at_best": None}
        found = Config.of(layers=1), "f" * 16, comm.size, progress, arrays, sharded
        return Checkpoint(epoch, *found)

    def refuse(temporary, path):
        raise OutputError("no space", file=path)

    store = CheckpointStore(shared_path, comm, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "publish", refuse)  # only rank 0 reaches it
        store.save(checkpoint(3), best=True)
    assert "no space" in store.failure()
    store.save(checkpoint(5))
    store.finish()
    assert store.missing() == ""
    names = sorted(path.name for path in shared_path.glob("*.h5"))
    assert names == ["best.h5", "epoch-000005.h5", "last.h5"]
    _, found = store.newest()
    assert found.epoch == 5
    store.close()
