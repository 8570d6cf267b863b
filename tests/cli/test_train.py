"""`hpcgnn train` and `hpcgnn predict` on the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from hpcgnn.cli import partition, predict, train
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.partition.load import load_partition
from hpcgnn.storage.write.graph_writer import GraphWriter
from hpcgnn.train.config import Config
from hpcgnn.train.header import check_header
from tests.cli.verbs import call, refused
from tests.graphs import random_graph

NUM_NODES = 60
SETTINGS = (
    "--model",
    "sage",
    "--layers",
    2,
    "--hidden",
    8,
    "--method",
    "random",
    "--seed",
    5,
    "--checkpoint-every",
    5,
    "--halo-buffer",
    "64KiB",
    "--norm",
    "layer",
)


def write(path: Path, num_nodes: int, num_edges: int, labels: bool = True, seed: int = 1) -> Path:
    whole = random_graph(num_nodes, num_edges, seed=seed, symmetric=True)
    with GraphWriter(path, num_nodes=num_nodes, config={}) as writer:
        writer.append_rows(np.bincount(whole.target, minlength=num_nodes), whole.source)
        writer.append_features(whole.features)
        writer.append_original_ids(1000 + 7 * np.arange(num_nodes)[::-1])
        if labels:
            writer.append_labels(whole.labels)
            writer.append_split(np.stack([whole.split, np.roll(whole.split, 7)], axis=1))
    return path


def test_which_of_several_splits_is_trained_on_is_said(comm, tmp_path):
    path = write(tmp_path / "g.h5", 9, 20)
    said = check_header(path, comm, Config.of(split=1))
    assert said == "note: split 1 of 0 .. 1 is trained on; --split N chooses another"


def test_what_cannot_be_learned_is_refused_before_torch_is_loaded(tmp_path):
    write(tmp_path / "bare.h5", 9, 20, labels=False)
    write(tmp_path / "g.h5", 9, 20)
    with GraphWriter(tmp_path / "plain.h5", num_nodes=2, config={}) as writer:
        writer.append_rows(np.array([1, 1]), np.array([1, 0]))
    script = """
import sys
from hpcgnn.cli.main import main
main(["partition", "g.h5", "--parts", "2", "--method", "random", "-o", "two.h5"])
for words in ("bare.h5", "g.h5 --task links", "g.h5 --target age", "two.h5", "plain.h5", "none.h5"):
    assert main(["train", *words.split()]) == 2, words
    print("torch" in sys.modules, file=sys.stderr)
"""
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "SLURM"))}
    run = {"capture_output": True, "text": True, "env": alone, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-c", script], **run)
    for words in (
        "bare.h5: the graph has no labels: there is nothing to learn",
        "g.h5: --task links needs a split of the edges",
        "g.h5: the graph has no array of this name: none (found 'age')",
        "two.h5: has 2 parts but the job has 1 rank",
        "plain.h5: the graph has no node features; give --embedding WIDTH",
        "none.h5: no such file",
    ):
        assert f"error: {words}" in done.stderr, done.stderr
    assert done.stderr.count("False\n") == 6, done.stderr


@pytest.fixture
def graph(comm, shared_path, monkeypatch) -> Path:
    """A small graph file; partitions and runs are written to the same folder, the current one."""
    monkeypatch.chdir(shared_path)
    if comm.rank == 0:
        write(shared_path / "g.h5", NUM_NODES, 240)
    comm.barrier()
    return shared_path / "g.h5"


def parts_of(comm: Communicator, graph: Path) -> Path:
    """Return the file that training on a graph file loads: on one rank the file itself."""
    return Path(f"partitions/g.p{comm.size}.h5") if comm.size > 1 else graph


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "rgcn"), "g.h5: --model rgcn needs relations"),
        (("--task", "labels"), "--task labels doesn't fit .*: nodes have one label each"),
        (("--metric", "rmse"), "--metric rmse doesn't fit classes"),
        (("--split", 2), "has 2 splits, none with this number"),
        (("--model", "none.py:Net"), "none.py: no such file"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_the_graph_is_partitioned(
    comm, graph, options, words
):
    with pytest.raises(InputError, match=words):
        call(comm, train, graph, *options)
    assert not Path("partitions").exists()


@pytest.fixture
def alone() -> Iterator[Communicator]:
    """Return a communicator of this rank alone."""
    communicator = Communicator(MPI.COMM_SELF)
    yield communicator
    communicator.close()


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Return every dataset of a file."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {})
        )
    return found


@pytest.mark.mpi
def test_stopped_and_resumed_runs_give_the_same_result(comm, alone, graph):
    """Bit-identical on the same number of ranks; within rounding on another number.

    Settings and graph default to those of the run.
    """
    last = "checkpoints/epoch-000020.h5"
    call(comm, train, graph, *SETTINGS, "--epochs", 20, "--run-dir", "a")
    parts = parts_of(comm, graph)
    made = parts.stat().st_mtime_ns
    call(comm, train, graph, *SETTINGS, "--epochs", 10, "--run-dir", "b")
    assert parts.stat().st_mtime_ns == made  # reused
    if comm.rank == 0:
        shutil.copytree("b", "c")
    comm.barrier()
    call(comm, train, "--resume", "b", "--epochs", 20)
    expected, found = arrays(Path("a", last)), arrays(Path("b", last))
    assert expected.keys() == found.keys() and len(found) > 8
    assert all(np.array_equal(values, found[name]) for name, values in expected.items())
    if comm.rank == 0:
        call(alone, train, graph, "--epochs", 20, "--run-dir", "c", "--resume")
        for name, values in arrays(Path("c", last)).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-4, err_msg=name)
    comm.barrier()


@pytest.mark.mpi
def test_training_replaces_only_partitions_that_training_made(comm, graph):
    parts = Path(f"partitions/g.p{comm.size}.h5")
    options = (*SETTINGS, "--epochs", 1)
    if comm.size == 1:
        call(comm, train, graph, *options, "--run-dir", "a")
        assert not Path("partitions").exists()  # a single rank needs no partition file
        return

    def change(path: Path, content: bytes) -> None:
        comm.barrier()
        if comm.rank == 0:
            path.write_bytes(content)
        comm.barrier()

    call(comm, train, graph, *options, "--run-dir", "a")
    call(comm, partition, graph, "--method", "random", "--seed", 6, "-o", "by_hand.h5")
    former, first = graph.read_bytes(), parts.read_bytes()
    comm.barrier()
    if comm.rank == 0:
        write(graph, NUM_NODES, 200, seed=2)
    comm.barrier()
    call(comm, train, graph, *options, "--run-dir", "b")
    assert parts.read_bytes() != first  # partitioned again, since the graph has changed
    for content in (Path("by_hand.h5").read_bytes(), former, b"precious"):
        change(parts, content)
        with pytest.raises(InputError, match="is not a partition of this graph made by training"):
            call(comm, train, graph, *options, "--run-dir", "c")
        assert parts.read_bytes() == content


@pytest.mark.mpi
def test_predictions_are_in_the_order_of_the_graph(comm, alone, graph):
    """Several ranks write the same as one; options choose the postprocessing."""
    call(comm, train, graph, *SETTINGS, "--epochs", 5, "--run-dir", "a")
    best, parts = "a/checkpoints/best.h5", parts_of(comm, graph)
    call(comm, predict, parts, best, "-o", "several.h5", "--embeddings")
    if comm.rank == 0:
        call(alone, partition, graph, "--method", "block", "-o", "one.h5")
        call(alone, predict, "one.h5", best, "-o", "alone.h5", "--embeddings")
    comm.barrier()
    one, other = arrays(Path("alone.h5")), arrays(Path("several.h5"))
    assert one.keys() == {"probabilities", "classes", "embeddings", "original_ids"}
    assert one["original_ids"].tolist() == (1000 + 7 * np.arange(NUM_NODES)[::-1]).tolist()
    np.testing.assert_array_equal(one["original_ids"], other["original_ids"])
    np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-5)
    np.testing.assert_allclose(one["embeddings"], other["embeddings"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(other["classes"], other["probabilities"].argmax(1))
    assert one["embeddings"].shape == (NUM_NODES, 8)

    call(comm, predict, parts, best, "-o", "cs.h5", "--correct-and-smooth")
    smoothed = arrays(Path("cs.h5"))["probabilities"]
    np.testing.assert_allclose(smoothed.sum(1), 1, rtol=1e-5)
    assert not np.allclose(smoothed, one["probabilities"], atol=1e-2)
    call(comm, predict, parts, "-o", "lp.h5", "--label-propagation")
    assert arrays(Path("lp.h5")).keys() == {"probabilities", "classes", "original_ids"}
    for arguments, words in (
        ((parts,), "give a checkpoint, or --label-propagation"),
        ((parts, best, "--label-propagation"), "leave a checkpoint out"),
        ((parts, parts), parts.name),
        ((parts, "a/nothing.h5"), "nothing.h5"),
    ):
        with pytest.raises(InputError, match=words):
            call(comm, predict, *arguments, "-o", "x.h5")
    assert not Path("x.h5").exists()


@pytest.mark.mpi
def test_a_checkpoint_of_another_graph_is_refused(comm, graph):
    call(comm, train, graph, *SETTINGS, "--epochs", 1, "--run-dir", "a")
    if comm.rank == 0:
        write(Path("h.h5"), NUM_NODES, 240, seed=9)
    comm.barrier()
    call(comm, partition, "h.h5", "--method", "random", "-o", "h.parts.h5")
    with pytest.raises(InputError, match=r"another graph.*--any-graph"):
        call(comm, predict, "h.parts.h5", "a/checkpoints/best.h5", "-o", "x.h5")
    call(comm, predict, "h.parts.h5", "a/checkpoints/best.h5", "-o", "x.h5", "--any-graph")


@pytest.mark.mpi
def test_graphs_with_few_nodes_or_without_labels(comm, graph):
    """Empty parts train like others, but are refused when asked for; training needs labels."""
    if comm.rank == 0:
        write(Path("tiny.h5"), 3, 4, seed=2)
        write(Path("bare.h5"), 9, 20, labels=False)
    comm.barrier()
    if comm.size > 3:
        with pytest.raises(InputError, match=f"{comm.size} parts of 3 nodes"):
            call(comm, train, "tiny.h5", *SETTINGS, "--epochs", 2, "--run-dir", "t")
    else:
        call(comm, train, "tiny.h5", *SETTINGS, "--epochs", 2, "--run-dir", "t")
        assert len(Path("t/metrics.jsonl").read_text().splitlines()) == 2
        with pytest.raises(InputError, match=r"is neither a graph nor a partition .*checkpoint"):
            call(comm, train, "t/checkpoints/last.h5", "--run-dir", "v")
    with pytest.raises(InputError, match=r"has no labels.*of its edges: --task links"):
        call(comm, train, "bare.h5", "--method", "random", "--run-dir", "u")


@pytest.mark.mpi
def test_files_that_do_not_fit_are_refused_by_all_ranks(comm, alone, graph):
    parts, damaged = graph.with_name("parts.h5"), graph.with_name("damaged.h5")
    if comm.rank == 0:
        options = ("--method", "block", "-o")
        call(alone, partition, graph, "--parts", comm.size + 1, *options, parts)
        call(alone, partition, graph, "--parts", comm.size, *options, damaged)
        data = bytearray(damaged.read_bytes())
        feature = random_graph(NUM_NODES, 240, seed=1, symmetric=True).features[3, 1]
        place = data.find(feature.tobytes())
        assert place > 0
        data[place + 2] ^= 0x55
        damaged.write_bytes(data)
    comm.barrier()
    words = f"parts.h5.*has {comm.size + 1} parts but the job has {comm.size} rank.*--parts"
    for path, match in ((parts, words), (damaged, "damaged.h5.*features")):
        with pytest.raises(InputError, match=match):
            call(comm, train, path, "--run-dir", "x")
        comm.barrier()


def test_an_error_on_several_ranks_is_printed_once(mpirun, graph, alone):
    parts = graph.with_name("parts.h5")
    call(alone, partition, graph, "--parts", 3, "--method", "block", "-o", parts)
    words = "parts.h5", "has 3 parts but the job has 2 ranks", "--parts 2"
    refused(mpirun(2, "train", parts), *words)


def test_a_slurm_job_of_other_ranks_is_told_how_to_be_submitted(alone, graph, monkeypatch):
    parts = graph.with_name("parts.h5")
    call(alone, partition, graph, "--parts", 3, "--method", "block", "-o", parts)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    words = (
        r"start 3 ranks \(`srun -n 3 ...`\), in a job that was submitted with `--ntasks=3`, or "
        "partition again with --parts 1$"
    )
    with pytest.raises(InputError, match=words):
        load_partition(parts, alone)
