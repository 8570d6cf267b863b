"""`hpcgnn info` on every kind of file, valid and damaged."""

from __future__ import annotations

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from hpcgnn.cli import main
from hpcgnn.storage.read.reader import Reader
from hpcgnn.storage.write import atomic
from hpcgnn.train.checkpoint import file as checkpoint_file
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.config import Config
from tests.storage.files import graph_content
from tests.storage.partitions import write_small
from tests.storage.write.test_graph_writer import write


@pytest.fixture
def files(comm, tmp_path):
    write(tmp_path / "graph.h5", graph_content(), [0, 9], num_classes=4)
    write_small(tmp_path / "partition.h5", comm, 3)
    weights = {"model/weight": np.ones((4, 2), np.float32)}
    progress = {"best": None, "best_epoch": 0, "test_at_best": None}
    config = Config.of(layers=1, lr=0.01)
    checkpoint_file.write(
        tmp_path / "checkpoint.h5", Checkpoint(7, config, "f" * 16, 1, progress, weights)
    )
    with atomic.create(tmp_path / "predictions.h5") as output:
        output.dataset("model/weight", np.dtype("f4"), (4, 2))[...] = 1
        output.set_attributes(
            {"format": "hpcgnn-predictions", "version": 1, "epoch": 7, "config": {"lr": 0.01}}
        )
    return tmp_path


KINDS = ["graph", "partition", "checkpoint", "predictions"]


@pytest.mark.parametrize("kind", KINDS)
def test_json_describes_the_file(files, capsys, kind):
    path = files / f"{kind}.h5"
    assert main.main(["info", str(path), "--json", "--check"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["format"] == f"hpcgnn-{kind}"
    assert content["bytes"] == path.stat().st_size
    with h5py.File(path) as file:
        for dataset in content["datasets"]:
            assert file[dataset["name"]].shape == tuple(dataset["shape"])
            assert file[dataset["name"]].nbytes == dataset["bytes"]
    if kind == "graph":
        assert content["attributes"]["num_edges"] == 20
        assert content["attributes"]["config"] == {"verb": "test"}
        assert len(content["datasets"]) == len(graph_content().arrays)
    elif kind == "partition":
        assert sum(part["nodes"] for part in content["parts"]) == 30
        assert content["attributes"]["report"]["edge_cut"] == 12
    else:
        assert content["attributes"]["config"]["lr"] == 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_text_output_is_readable(files, capsys, kind):
    assert main.main(["info", str(files / f"{kind}.h5")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    version = 2 if kind == "partition" else 1  # with named arrays
    assert lines[0].startswith(f"{files / kind}.h5: {kind}, format version {version}, ")
    words = {
        "graph": ["num_nodes 9", "edges/indices 20 int32 80 B"],
        "partition": [
            "1 0 0 7",
            "edge cut 12 34",
            "balance of nodes 1.25",
            "parts/*/in/columns various int32",
            "parts/*/nodes/arrays/position various float64",
        ],
        "checkpoint": ["epoch 7", "lr 0.01", "model/weight 4x2 float32 32 B"],
        "predictions": ["epoch 7"],
    }[kind]
    for word in words:
        assert any(line.startswith(word) for line in lines), (word, lines)


@pytest.mark.parametrize("kind", KINDS)
def test_check_reads_every_value(files, capsys, kind):
    path = files / f"{kind}.h5"
    name = {"graph": "edges/weight", "partition": "parts/00002/in/weight"}.get(kind, "model/weight")
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 5] ^= 4
    path.write_bytes(data)
    assert main.main(["info", str(path)]) == 0
    capsys.readouterr()
    assert main.main(["info", str(path), "--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hpcgnn: error: {path}: {name}: can't be read: its data fail their")
    assert error.count("\n") == 1


def test_check_refuses_an_unusable_checkpoint(files, capsys):
    path = files / "checkpoint.h5"
    found = checkpoint_file.read(path)
    found.arrays["model/weight"] *= np.nan
    path.unlink()
    checkpoint_file.write(path, found)
    assert main.main(["info", str(path)]) == 0
    capsys.readouterr()
    assert main.main(["info", str(path), "--check"]) == 2
    assert capsys.readouterr().err == f"hpcgnn: error: {path}: model/weight: is not finite\n"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"original_ids": np.arange(4)}, "disagrees on the number of rows"),
        ({"original_ids": np.ones(5, np.float32)}, "another type or shape"),
        ({"classes": np.array([0, 1, 3, 1, 0])}, "entry 2 must lie in 0 .. 2 (found 3)"),
        ({"probabilities": np.full((5, 3), 1.5, np.float32)}, "must lie in 0 .. 1"),
        ({"probabilities": np.full((5, 3), np.nan, np.float32)}, "5 rows are not finite"),
    ],
)
def test_check_reads_predictions(tmp_path, capsys, changed, said):
    path = tmp_path / "predictions.h5"
    arrays = {
        "original_ids": np.arange(5),
        "classes": np.array([0, 1, 2, 1, 0]),
        "probabilities": np.array([[0.5, 0.25, 0.25]] * 4 + [[np.nan] * 3], np.float32),
        **changed,
    }
    with atomic.create(path) as output:
        for name, array in arrays.items():
            output.dataset(name, array.dtype, array.shape)[...] = array
        output.set_attributes({"format": "hpcgnn-predictions", "version": 1, "not_finite": 1})
    assert main.main(["info", str(path), "--check"]) == (2 if said else 0)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == bool(said)


@pytest.mark.parametrize("kind", ["absent", "text", "folder", "other", "unknown", "truncated"])
def test_other_files_are_refused_in_one_line(files, capsys, kind):
    path = files / f"{kind}.h5"
    if kind == "text":
        path.write_text("some text")
    elif kind == "folder":
        path.mkdir()
    elif kind == "other":
        with h5py.File(path, "w") as file:
            file["x"] = [1, 2]
    elif kind == "unknown":
        with atomic.create(path) as output:
            output.set_attributes({"format": "hpcgnn-soup", "version": 1})
    elif kind == "truncated":
        path.write_bytes((files / "graph.h5").read_bytes()[:-100])
    assert main.main(["info", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"hpcgnn: error: {path}: ") and captured.err.count("\n") == 1


@pytest.mark.slow
def test_info_starts_fast(files):
    command = [sys.executable, "-X", "importtime", "-m", "hpcgnn.cli.main", "info"]
    done = subprocess.run([*command, files / "graph.h5"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "h5py" in done.stderr
    for heavy in ("torch", "scipy", "mpi4py.MPI"):
        assert f" {heavy}\n" not in done.stderr


def add_attributes(path, **more: str) -> None:
    """Add attributes to the root, with the checksum over all of them."""
    with Reader(path, None) as reader:
        attributes = reader.attributes | more
    with h5py.File(path, "r+", libver=atomic.LIBVER) as file:
        for name in list(file.attrs):
            del file.attrs[name]
        atomic.OutputFile(file, path).set_attributes(attributes)


@pytest.mark.parametrize("kind", ["graph", "checkpoint"])
def test_line_breaks_in_names_and_values_are_escaped(files, capsys, kind):
    path = files / f"{kind}.h5"
    with h5py.File(path, "r+") as file:
        file.create_dataset("x\x1b[31m\nevery value was read and is valid", data=np.zeros(1))
    more = {
        "zz\x1b[5m": "\x1b]52;c;cm0K\x07\nhpcgnn: error: none",
        "extra": json.dumps({"a\nb\x9b": "c\u202e"}, ensure_ascii=False),
        "nested": "[" * 5000 + "]" * 5000,
        "report": "[1, 2]",
    }
    add_attributes(path, **more)
    assert main.main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    lines = [line.strip() for line in out.splitlines()]
    assert "every value was read and is valid" not in lines
    assert not any(line.startswith("hpcgnn: error") for line in lines)
    assert r"a\nb\x9b" in out and r"c\u202e" in out
