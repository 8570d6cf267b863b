"""Checkpoints that can't be written affect neither training nor earlier checkpoints."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcgnn.errors import InputError, OutputError
from hpcgnn.train.checkpoint import file as files
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.store import LAST, CheckpointStore, best_or_last, name_also
from hpcgnn.train.config import Config
from hpcgnn.train.configured import configured_trainer
from hpcgnn.train.stop import StopRequest
from hpcgnn.train.trainer import Trainer
from tests.graphs import distribute, random_graph

SETTINGS = {"layers": 2, "hidden": 96, "halo_buffer": "64KiB", "checkpoint_every": 2, "keep": 2}


def make(epoch: int, size: int = 10) -> Checkpoint:
    arrays = {"model/w": np.full(size, epoch, np.float32)}
    progress = {"best": None, "best_epoch": 0, "test_at_best": None}
    return Checkpoint(epoch, Config.of(layers=1), "f" * 16, 1, progress, arrays)


def make_trainer(comm, folder: Path, **changes: object) -> Trainer:
    graph = distribute(random_graph(40, 160, seed=1), comm, halo_buffer=65536)
    graph = replace(graph, graph_fingerprint="f" * 16)
    return configured_trainer(graph, Config.of(**(SETTINGS | changes)), folder, resume=True)


def train(comm, folder: Path, **changes: object) -> Trainer:
    trainer = make_trainer(comm, folder, **changes)
    trainer.run()
    return trainer


@contextmanager
def disk_full(folder: Path) -> Iterator[None]:
    """Limit files to 16 KiB: enough for the journal, not for a checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make `folder` read-only, for root too."""
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_the_best_and_the_last_checkpoints_are_kept(comm, tmp_path):
    (tmp_path / ".epoch-000009.h5.0123abcd.tmp").write_bytes(b"half")
    store = CheckpointStore(tmp_path, comm, keep=2)
    for epoch in range(1, 6):
        store.save(make(epoch), best=epoch == 3)
        store.save(make(epoch))
        store.finish()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.h5", "epoch-000004.h5", "epoch-000005.h5", "last.h5"]
    assert files.read(tmp_path / "best.h5").epoch == 3
    assert (tmp_path / "last.h5").samefile(tmp_path / "epoch-000005.h5")
    store.close()


class SlowDisk:
    """A disk whose writes begin on request; `written` holds the names and epochs so far."""

    def __init__(self, monkeypatch) -> None:
        self.let, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self.written: list[tuple[str, int]] = []
        real = files.write

        def write(path: Path, checkpoint: Checkpoint) -> None:
            self.begun.release()
            self.let.acquire()
            real(path, checkpoint)
            self.written.append((path.name, checkpoint.epoch))

        monkeypatch.setattr(files, "write", write)


def test_last_h5_is_a_copy_where_links_are_not_supported(tmp_path, monkeypatch):
    """As on some file systems; no other file is left beside it."""

    def refuse(*paths: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    newest, last = tmp_path / "epoch-000002.h5", tmp_path / LAST
    newest.write_bytes(b"new")
    for _ in range(2):
        name_also(newest, LAST)
        assert last.read_bytes() == b"new" and not last.samefile(newest)
    assert sorted(tmp_path.iterdir()) == [newest, last]


def test_at_most_one_checkpoint_waits_and_the_newest_wins(comm, tmp_path, monkeypatch):
    disk, store = SlowDisk(monkeypatch), CheckpointStore(tmp_path, comm, keep=2)
    alive = []
    for epoch in range(1, 31):
        checkpoint = make(epoch)
        alive.append(weakref.ref(checkpoint))
        store.save(checkpoint, best=True)
        del checkpoint
        if epoch == 1:
            disk.begun.acquire()
    assert sum(reference() is not None for reference in alive) == 2
    other = threading.Thread(target=store.save, args=(make(31),))
    other.start()  # waits for its slot, and takes none from the best
    disk.let.release()
    other.join(timeout=60)
    assert not other.is_alive() and disk.written == [("best.h5", 1)]
    disk.let.release(2)
    store.finish()
    assert disk.written == [("best.h5", 1), ("best.h5", 30), ("epoch-000031.h5", 31)]
    store.close()


def test_the_best_checkpoint_is_retried_once_the_disk_has_space(comm, tmp_path, capfd):
    store = CheckpointStore(tmp_path, comm, keep=2)
    with disk_full(tmp_path):
        store.save(make(2, size=100_000), best=True)
        store.finish()
    assert "best.h5" in store.missing()
    store.save(make(5))
    store.finish()
    assert files.read(tmp_path / "best.h5").epoch == 2
    assert store.missing() == "" and "best.h5" in store.failure()
    store.close()


@pytest.mark.parametrize("left", ["nothing", "damage", "another", "the best"])
@pytest.mark.parametrize("periodic", [False, True])
def test_a_best_checkpoint_that_was_lost_is_replaced_or_named(
    comm, tmp_path, capfd, left, periodic
):
    progress = {"best": 0.5, "best_epoch": 3, "test_at_best": None}
    best, third = tmp_path / "best.h5", tmp_path / "epoch-000003.h5"
    for path, epoch in ((best, 2 if left == "another" else 3), (third, 3)):
        files.write(path, replace(make(epoch), progress=progress | {"best_epoch": epoch}))
    name_also(third, LAST)
    if left == "nothing":
        best.unlink()
    if left == "damage":
        best.write_bytes(best.read_bytes()[:-100])
    if not periodic:
        third.unlink()
    store = CheckpointStore(tmp_path, comm, keep=2)
    found = store.best_of(replace(make(4), progress=progress))
    store.close()
    said = capfd.readouterr().err
    if left == "the best":
        assert found.epoch == 3 and said == ""
    elif periodic:
        assert found.epoch == 3 and files.read(best).epoch == 3
        assert "best.h5: " in said and "replaced by epoch-000003.h5, the best epoch" in said
    else:
        assert found is None or found.epoch == 2
        assert "best.h5: " in said and "the best epoch so far is 3: best.h5 will be" in said


def test_predictions_from_the_last_checkpoint_say_that_the_best_is_lost(tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for best_epoch, said in ((0, ""), (4, ""), (3, "best.h5: is missing")):
        progress = {"best": 0.5 if best_epoch else None, "best_epoch": best_epoch}
        files.write(folder / LAST, replace(make(4), progress=progress | {"test_at_best": None}))
        assert best_or_last(tmp_path) == folder / LAST
        err = capfd.readouterr().err
        assert said in err if said else err == ""


def test_damaged_checkpoints_do_not_count_as_kept(comm, tmp_path, capfd):
    (tmp_path / "epoch-000100.h5").write_bytes(b"damaged")
    files.write(tmp_path / "epoch-000007.h5", make(7))
    files.write(tmp_path / "epoch-000009.h5", make(8))
    store = CheckpointStore(tmp_path, comm, keep=1)
    path, found = store.newest()
    assert (path.name, found.epoch) == ("epoch-000007.h5", 7)
    err = capfd.readouterr().err
    assert (
        "epoch-000009.h5: belongs to another epoch (found 8); trying the checkpoint before" in err
    )
    store.save(make(10))
    store.finish()
    assert store.newest_epoch() == 10 and (tmp_path / "epoch-000010.h5").exists()
    store.close()


def test_without_a_good_checkpoint_a_run_is_not_restarted(comm, tmp_path):
    train(comm, tmp_path, epochs=4)
    folder, journal = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    best, before = (folder / "best.h5").read_bytes(), journal.read_bytes()
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no checkpoint .* can be read: .*h5: .*\(and 3 more\)"):
        train(comm, tmp_path, epochs=6)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="records 4 epochs, but no checkpoint is left"):
        train(comm, tmp_path, epochs=6)
    assert journal.read_bytes() == before
    (folder / "best.h5").write_bytes(best)
    assert train(comm, tmp_path, epochs=6).start in range(1, 5)
    assert len(journal.read_text().splitlines()) == 6


def test_a_full_disk_loses_only_one_checkpoint(comm, tmp_path, capfd):
    store = CheckpointStore(tmp_path, comm, keep=2)
    store.save(make(1))
    store.finish()
    with disk_full(tmp_path):
        store.save(make(2, size=100_000))
        store.finish()
    assert "epoch-000002.h5: can't be written: File too large" in store.failure()
    err = capfd.readouterr().err
    assert err.startswith("hpcgnn: warning: CHECKPOINT NOT WRITTEN: ")
    assert err.endswith("newest good checkpoint: epoch-000001.h5\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-000001.h5", "last.h5"]
    path, found = store.newest()
    assert (path.name, found.epoch) == ("epoch-000001.h5", 1)
    store.save(make(3))
    store.finish()
    assert store.newest_epoch() == 3
    assert "epoch-000002.h5" in store.failure(), "a later success doesn't undo it"
    store.close()


@pytest.mark.parametrize("fault", [disk_full, read_only], ids=lambda fault: fault.__name__)
def test_training_continues_without_checkpoints(comm, open_folder, capfd, fault):
    train(comm, open_folder, epochs=2)
    checkpoints, journal = open_folder / "checkpoints", open_folder / "metrics.jsonl"
    journal.chmod(0o666)
    before = (checkpoints / "epoch-000002.h5").read_bytes()
    capfd.readouterr()
    trainer = make_trainer(comm, open_folder, epochs=6)
    with fault(checkpoints), pytest.raises(OutputError, match=r"not be written: .*epoch-000006"):
        trainer.run()
    assert trainer.epoch == 6
    assert len(journal.read_text().splitlines()) == 6
    err = capfd.readouterr().err
    assert err.count("CHECKPOINT NOT WRITTEN") >= 2
    assert "newest good checkpoint: epoch-000002.h5" in err
    assert (checkpoints / "epoch-000002.h5").read_bytes() == before
    assert not list(checkpoints.glob(".*.tmp"))
    again = train(comm, open_folder, epochs=6)
    for ours, theirs in zip(again.parameters, trainer.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_a_failed_checkpoint_ends_the_run_on_request(comm, tmp_path):
    train(comm, tmp_path, epochs=2)
    with (
        disk_full(tmp_path),
        pytest.raises(OutputError, match=r"could not be written.*File too large"),
    ):
        train(comm, tmp_path, epochs=6, fail_on_checkpoint=True)
    assert files.read(tmp_path / "checkpoints" / "epoch-000002.h5").epoch == 2


def test_one_failure_among_successes_ends_the_run_on_request(comm, tmp_path, capfd):
    """`best.h5` can't be renamed into place; the others can, and are written after it."""
    trainer = make_trainer(comm, tmp_path, epochs=6, checkpoint_every=1, fail_on_checkpoint=True)
    (tmp_path / "checkpoints" / "best.h5" / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"could not be written: .*best\.h5"):
        trainer.run()


def test_a_stop_without_a_new_checkpoint_requests_no_requeue(comm, open_folder, capfd):
    """Otherwise a job on a full disk would be restarted forever."""
    train(comm, open_folder, epochs=2)
    stop = StopRequest()
    graph = distribute(random_graph(40, 160, seed=1), comm, halo_buffer=65536)
    graph = replace(graph, graph_fingerprint="f" * 16)
    config = Config.of(**(SETTINGS | {"epochs": 9}))
    trainer = configured_trainer(graph, config, open_folder, resume=True, stop=stop)
    stop.reason = "SIGUSR1"
    words = r"stopped after epoch 3, but no checkpoint after epoch 2 .* isn't requeued: .*too large"
    with disk_full(open_folder / "checkpoints"), pytest.raises(OutputError, match=words):
        trainer.run()
    assert not (open_folder / "REQUEUE").exists()


def test_optimizer_settings_are_those_given_on_resumption(comm, tmp_path):
    train(comm, tmp_path, epochs=2)
    again = train(comm, tmp_path, epochs=2, weight_decay=5.0)
    assert [group["weight_decay"] for group in again.optimizer.param_groups] == [5.0]
    assert again.optimizer.state
