"""`hpcgnn predict`: valid outputs, and errors when the output can't be written."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcgnn.cli import partition, predict, train
from hpcgnn.errors import (
    HpcgnnError,
    InputError,
    NumericalError,
    OutOfMemoryError,
    OutputError,
)
from hpcgnn.storage.read.load import load_partition
from hpcgnn.train import label_propagation, open, prediction_writing
from hpcgnn.train import predict as predictions
from tests.cli.test_train import SETTINGS, arrays, write
from tests.cli.verbs import call

NUM_NODES = 60


@pytest.fixture(scope="module")
def stored(comm, tmp_path_factory) -> Path:
    path = comm.broadcast(tmp_path_factory.mktemp("stored") if comm.rank == 0 else None)
    if comm.rank == 0:
        write(path / "g.h5", NUM_NODES, 240)
    comm.barrier()
    call(comm, partition, path / "g.h5", "--method", "block", "-o", path / "parts.h5")
    return path


@pytest.fixture
def parts(copied) -> Path:
    """A partition file in the current folder, with a part per rank, and its graph `g.h5`."""
    return copied / "parts.h5"


@pytest.mark.mpi
def test_an_output_that_cannot_be_created_ends_all_ranks(comm, parts, capsys):
    """At once: the other ranks do not wait in an exchange."""
    if comm.rank == 0:
        Path("file").touch()
    comm.barrier()
    capsys.readouterr()
    for output, words in (
        ("missing/pr.h5", "missing.*no such folder"),
        ("file/pr.h5", "file.*no such folder"),
        ("/proc/pr.h5", "/proc/pr.h5.*can't be written"),
        (f"{'x' * 300}.h5", "xxx.h5.*name too long"),
    ):
        with pytest.raises(HpcgnnError, match=f"(?i){words}"):
            call(comm, predict, parts, "--label-propagation", "-o", output)
        assert "device" not in capsys.readouterr().out  # before anything is read


@pytest.mark.mpi
def test_only_predictions_are_replaced(comm, parts):
    if comm.rank == 0:
        Path("notes.csv").write_text("not ours")
        Path("ages.csv").write_text("original_id,age\n1,40\n")
        Path("truth.csv").write_text("original_id,class\n1,2\n")
        with zipfile.ZipFile("newer.npz", "w") as archive:
            archive.writestr("a", "b")
        packed = Path("newer.npz").read_bytes()
        Path("newer.npz").write_bytes(packed.replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\xff"))
        Path("linked.h5").symlink_to("parts.h5")
        Path("deep").mkdir()
    comm.barrier()
    for output, words in (
        ("parts.h5", "is an input of this command"),
        ("deep/../parts.h5", "is an input of this command"),
        ("linked.h5", "is an input of this command"),
        ("g.h5", "is not a predictions file of hpcgnn"),
        ("notes.csv", "is not a predictions file of hpcgnn"),
        ("ages.csv", "is not a predictions file of hpcgnn"),
        ("truth.csv", "is not a predictions file of hpcgnn"),
        ("newer.npz", "is not a predictions file of hpcgnn"),
    ):
        before = Path(output).read_bytes()
        with pytest.raises(InputError, match=f"{output}: .*{words}.*choose another name"):
            call(comm, predict, parts, "--label-propagation", "-o", output, "--force")
        assert Path(output).read_bytes() == before
    with pytest.raises(InputError, match="is an input of this command"):
        # Whatever kind of checkpoint is given.
        call(comm, predict, parts, "g.h5", "-o", "g.h5", "--force")
    for output in ("pr.h5", "pr.csv", "pr.npz"):
        call(comm, predict, parts, "--label-propagation", "-o", output)
        with pytest.raises(InputError, match=rf"{output}: exists already: .*--force"):
            call(comm, predict, parts, "--label-propagation", "-o", output)
        call(comm, predict, parts, "--label-propagation", "-o", output, "--force")
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith(".")) == []


@pytest.mark.mpi
def test_files_that_do_not_fit_the_ranks_are_refused_before_pytorch_is_loaded(comm, copied, capsys):
    made = Path(f"partitions/g.p{comm.size}.h5")
    if comm.rank == 0:
        made.parent.mkdir(exist_ok=True)
        made.touch()
    comm.barrier()
    call(comm, partition, "g.h5", "--parts", comm.size + 1, "--method", "block", "-o", "more.h5")
    capsys.readouterr()
    wrong = [("more.h5", "g.h5", f"has {comm.size + 1} parts"), ("parts.h5", "run", "no such file")]
    if comm.size > 1:
        wrong.append(("g.h5", "g.h5", f"g.h5: is not divided into parts: predict on {made}"))
    for graph, checkpoint, words in wrong:
        with pytest.raises(InputError, match=words):
            call(comm, predict, graph, checkpoint, "-o", "pr.h5")
    assert "PyTorch" not in capsys.readouterr().out


@pytest.mark.mpi
@pytest.mark.parametrize("options", [(), ("--correct-and-smooth",)])
def test_the_split_is_that_of_training_by_default(comm, parts, capsys, options):
    """Unless another is given; label inputs and smoothing use the labels of its training nodes."""
    call(
        comm,
        train,
        parts,
        *SETTINGS,
        "--split",
        1,
        "--labels-as-input",
        0.5,
        "--epochs",
        3,
        "--run-dir",
        "a",
    )
    best = "a/checkpoints/best.h5"
    capsys.readouterr()
    call(comm, predict, parts, best, "-o", "default.h5", *options)
    told = capsys.readouterr().out
    for split in (0, 1):
        call(comm, predict, parts, best, "-o", f"{split}.h5", "--split", split, *options)
    default, zero, one = (arrays(Path(f"{name}.h5")) for name in ("default", 0, 1))
    np.testing.assert_array_equal(default["probabilities"], one["probabilities"])
    assert not np.allclose(default["probabilities"], zero["probabilities"], atol=1e-3)
    graph = arrays(Path("g.h5"))
    labels = graph["nodes/labels"]
    for code, name in enumerate(("train", "valid", "test"), 1):
        scored = (graph["nodes/split"][:, 1] == code) & (labels >= 0)
        score = (default["classes"] == labels)[scored].mean()
        assert comm.rank or f"{name} {100 * score:.2f} %" in told
    with h5py.File("default.h5") as file:
        assert file.attrs["split"] == 1


@pytest.mark.mpi
def test_features_are_kept_where_training_kept_them(comm, parts, monkeypatch):
    """Features and precision are as in training; the mode is not, without a backward pass."""
    call(
        comm,
        train,
        parts,
        *SETTINGS,
        "--features-on",
        "host",
        "--precision",
        "tf32",
        "--mode",
        "oneshot",
        "--epochs",
        1,
        "--run-dir",
        "a",
    )
    asked = []

    def open_part(path, comm, config, *display):
        asked.append(config)
        return plain(path, comm, config, *display)

    plain = open.open_part
    monkeypatch.setattr(open, "open_part", open_part)
    call(comm, predict, parts, "a/checkpoints/best.h5", "-o", "pr.h5", "--halo-buffer", "1MiB")
    (where,) = asked
    assert (where.device.features_on, where.device.precision, where.streaming.mode) == (
        "host",
        "tf32",
        "sar",
    )
    assert (where.device.kind, where.streaming.halo_buffer) == ("auto", "1MiB")


@pytest.mark.mpi
@pytest.mark.parametrize("function", ["build_model", "restore_model", "scored"])
def test_a_lack_of_memory_is_explained(comm, parts, monkeypatch, function):
    call(comm, train, parts, *SETTINGS, "--epochs", 1, "--run-dir", "a")

    def full(*_, **__):
        raise RuntimeError("can't allocate memory: you tried to allocate 8000000000 bytes.")

    monkeypatch.setattr(predictions, function, full)
    # Rank 0 prints it.
    words = r"8\.0 GB of host memory.*hpcgnn plan" if comm.rank == 0 else "memory"
    with pytest.raises(OutOfMemoryError, match=words):
        call(comm, predict, parts, "a/checkpoints/best.h5", "-o", "pr.h5")


@pytest.mark.mpi
@pytest.mark.parametrize("call_name", ["pwrite", "fsync"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_ends_all_ranks(comm, parts, monkeypatch, call_name, after):
    real, calls = getattr(os, call_name), []

    def full(*args):
        calls.append(args)
        if len(calls) > (after if call_name == "pwrite" else 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(prediction_writing, "SLAB_BYTES", 128)
    if comm.rank == 0:
        Path("pr.h5").touch()
        monkeypatch.setattr(os, call_name, full)
    comm.barrier()
    graph = load_partition(parts, comm)
    found = label_propagation.predict_from_labels(graph)
    with pytest.raises(OutputError, match="No space left"):
        prediction_writing.write_predictions(Path("pr.h5"), graph, found.rows, {})
    comm.barrier()
    assert Path("pr.h5").read_bytes() == b""
    assert not list(Path().glob(".pr.h5.*"))


@pytest.mark.mpi
@pytest.mark.parametrize("first", [0, 57])
def test_predictions_that_are_not_finite_are_reported(comm, parts, monkeypatch, capfd, first):
    propagation = label_propagation.label_propagation

    def spoiled(graph, *arguments):
        scores_NC = propagation(graph, *arguments)
        scores_NC[graph.node_ids >= first, 0] = float("nan")
        return scores_NC

    monkeypatch.setattr(label_propagation, "label_propagation", spoiled)
    if first == 0:
        with pytest.raises(NumericalError, match="no node has a finite prediction"):
            call(comm, predict, parts, "--label-propagation", "-o", "pr.h5")
        assert not Path("pr.h5").exists()
        return
    call(comm, predict, parts, "--label-propagation", "-o", "pr.h5")
    line = "predictions of 3 nodes are not finite, the first those of node 57"
    assert (line in capfd.readouterr().err) == (comm.rank == 0)
    with h5py.File("pr.h5", "r") as h5:
        assert h5.attrs["not_finite"] == 3
        assert np.isnan(h5["probabilities"][57:, 0]).all()
