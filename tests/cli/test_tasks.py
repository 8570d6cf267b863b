"""Every task from a graph file to predictions, on the command line."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import h5py
import networkx
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from mpi4py import MPI

import hpcgnn
from hpcgnn.cli import convert, partition, predict, train
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.storage.read.load import load_partition
from tests.cli.verbs import call

pytestmark = pytest.mark.mpi
SETTINGS = ("--layers", 2, "--hidden", 8, "--device", "cpu")
OF_PAIRS = (*SETTINGS, "--pair-width", 4)
N, MANY = 50, 83


def write_graph(folder: Path, *, bare: bool = False, seed: int = 0) -> Path:
    """Convert arrays to `graph.h5`: classes, speeds, edges with labels and a split.

    A bare graph has none of these, and more nodes.
    """
    rng = np.random.default_rng(seed)
    number = MANY if bare else N
    ends = np.unique(rng.integers(0, number, (200, 2)), axis=0)
    ends = ends[ends[:, 0] < ends[:, 1]]
    arrays = {
        "edges": ends.T,
        "x": rng.normal(size=(number, 4)).astype(np.float32),
    }
    options: list[object] = ["--features", folder / "x.npy", "--num-nodes", number]
    if not bare:
        speed = rng.normal(size=(N, 2)).astype(np.float32)
        speed[::5, 1] = np.nan
        arrays |= {
            "y": rng.integers(0, 2, N),
            "split": rng.integers(0, 4, N).astype(np.int8),
            "kind": rng.integers(0, 3, len(ends)),
            "speed": speed,
        }
        options += ["--labels", folder / "y.npy", "--split", folder / "split.npy"]
        options += ["--edge-labels", folder / "kind.npy", "--link-split", "0.6,0.2,0.2"]
        options += ["--node-array", f"speed={folder / 'speed.npy'}"]
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    out = folder / "graph.h5"
    converted(folder / "edges.npy", out, "--symmetrise", *options)
    return out


def converted(*arguments: object) -> None:
    """Run `hpcgnn convert` on this rank, without a communicator."""
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    assert convert.run(parser.parse_args(list(map(str, arguments))), None) == 0


@pytest.fixture(scope="module")
def stored(comm, tmp_path_factory) -> Path:
    """Both graphs and their partitions."""
    path = comm.broadcast(tmp_path_factory.mktemp("stored") if comm.rank == 0 else None)
    for name, bare in (("known", False), ("bare", True)):
        folder, parts = path / name, path / f"{name}.p.h5"
        if comm.rank == 0:
            folder.mkdir()
            write_graph(folder, bare=bare, seed=int(bare))
        comm.barrier()
        call(comm, partition, folder / "graph.h5", "--method", "random", "-o", parts)
    return path


def losses(run_dir: str) -> list[tuple]:
    lines = Path(run_dir, "metrics.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)[name] for name in ("loss", "valid", "test")) for line in lines]


CASES = {
    "classes": ("--metric", "macro_f1", "--class-weights", "balanced", "--label-smoothing", 0.1),
    "values": ("--target", "speed", "--loss", "huber", "--metric", "rmse"),
    "edge-classes": ("--metric", "macro_f1", "--pair-width", 4),
    "links": (
        *("--decoder", "mlp", "--pair-width", 4),
        *("--metric", "mrr", "--hits-at", 5, "--ranked-against", 8, "--seed", 3),
    ),
}
FOUND = {
    "classes": ["original_id", "class", "probability_0", "probability_1"],
    "values": ["original_id", "value_0", "value_1"],
    "edge-classes": ["source_id", "target_id", "class", *(f"probability_{k}" for k in range(3))],
    "links": ["source_id", "target_id", "probability"],
}


@pytest.mark.parametrize("task", CASES)
def test_every_task_trains_resumes_and_predicts(comm, copied, task):
    """On the training graph, and on one without labels, split or ids of its own."""
    options = ("--task", task, *CASES[task], *SETTINGS)
    call(comm, train, "known.p.h5", *options, "--epochs", 1, "--run-dir", "run")
    call(comm, train, "known.p.h5", *options, "--epochs", 2, "--run-dir", "run", "--resume")
    call(comm, train, "known.p.h5", *options, "--epochs", 2, "--run-dir", "whole")
    assert losses("whole") == losses("run")  # to the bit
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(records) == 2 and all(np.isfinite(record["loss"]) for record in records)
    assert "NaN" not in Path("run/metrics.jsonl").read_text()
    assert records[-1]["valid"] is not None and Path("run/checkpoints/best.h5").exists()
    best = records[records[-1]["best_epoch"] - 1]
    scores = hpcgnn.predict(load_partition("known.p.h5", comm), "run").scores
    assert scores == pytest.approx({name: best[name] for name in ("train", "valid", "test")})
    call(comm, predict, "known.p.h5", "run", "-o", "out.csv")
    with Path("out.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == FOUND[task]
    call(comm, predict, "known.p.h5", "run", "-o", "out.parquet")
    table = pyarrow.parquet.read_table("out.parquet")
    assert table.column_names == header and table.num_rows == len(lines)
    for name, column in zip(header, zip(*lines, strict=True), strict=True):
        kind = np.float32 if "prob" in name or "value" in name else np.int64
        np.testing.assert_array_equal(np.array(column, kind), table[name].to_numpy())
    call(comm, predict, "bare.p.h5", "run", "--any-graph", "-o", "new.h5")
    with h5py.File("new.h5") as file, h5py.File("bare/graph.h5") as graph:
        if task in ("classes", "values"):
            assert np.array_equal(file["original_ids"], np.arange(MANY))
        else:
            indptr, sources = graph["edges/indptr"][()], graph["edges/indices"][()]
            assert np.array_equal(file["source_ids"], sources)
            assert np.array_equal(file["target_ids"], np.repeat(np.arange(MANY), np.diff(indptr)))
        assert file.attrs["not_finite"] == 0
        found = {name: file[name][()] for name in file}
    if comm.rank == 0:  # the same on one rank, for a model trained on any number of ranks
        alone = Communicator(MPI.COMM_SELF)
        call(alone, partition, "bare/graph.h5", "--method", "block", "-o", "alone.p1.h5")
        call(alone, predict, "alone.p1.h5", "run", "--any-graph", "-o", "alone.h5")
        with h5py.File("alone.h5") as file:
            assert found.keys() == set(file)
            for name in found.keys() - {"classes"}:
                np.testing.assert_allclose(file[name][()], found[name], rtol=1e-4, atol=1e-6)
    comm.barrier()


def test_predicted_links_are_the_held_out_ones(comm, copied):
    call(comm, train, "known.p.h5", "--task", "links", *OF_PAIRS, "--epochs", 1, "--run-dir", "run")
    call(comm, predict, "known.p.h5", "run", "-o", "out.npz")
    with np.load("out.npz") as found, h5py.File("known/graph.h5") as graph:
        targets = np.repeat(np.arange(N), np.diff(graph["edges/indptr"][()]))
        held_out = graph["edges/split"][()] > 1
        assert np.array_equal(found["source_ids"], graph["edges/indices"][()][held_out])
        assert np.array_equal(found["target_ids"], targets[held_out])
        # Both directions of an edge are in the same split.
        split = graph["edges/split"][()]
        of = dict(zip(zip(graph["edges/indices"], targets, strict=True), split, strict=True))
        assert all(of[b, a] == code for (a, b), code in of.items())
        assert 0.4 < (split == 1).mean() < 0.8


def test_given_pairs_are_predicted(comm, copied):
    call(comm, train, "known.p.h5", "--task", "links", *OF_PAIRS, "--epochs", 1, "--run-dir", "run")
    ends = np.random.default_rng(3).integers(0, N, (17, 2))
    if comm.rank == 0:
        np.save("pairs.npy", ends)
        lines = [f"{a}\t{b}\tx" for a, b in ends]
        Path("pairs.tsv").write_text("\n".join(["from\tto\twhy", *lines, ""]))
        Path("bad.csv").write_text("1,2\n3,four\n")
        Path("unknown.csv").write_text("1,2\n3,4000\n")
        for rank in range(2):
            Path(f"bad-{rank}.csv").write_text(f"1,2\n3,{rank}\n")
    comm.barrier()
    found = []
    for name in ("pairs.npy", "pairs.tsv"):
        call(comm, predict, "known.p.h5", "run", "--pairs", name, "-o", "out.h5", "--force")
        with h5py.File("out.h5") as file:
            assert np.array_equal(file["source_ids"], ends[:, 0])
            assert np.array_equal(file["target_ids"], ends[:, 1])
            found.append(file["probabilities"][()])
    np.testing.assert_allclose(*found, rtol=1e-5)
    for name, words in (
        ("bad.csv", r"bad.csv: row 2 must begin with two ids of nodes \(found '?3,four"),
        ("unknown.csv", r"unknown.csv: no node has this id \(found 4000\)"),
        ("known/x.npy", r"must be integers \[M, 2\]"),
        ("no.csv", "no.csv: no such file"),
        ("known", "known: is not a regular file"),
        *([(f"bad-{min(comm.rank, 1)}.csv", "ranks have different pairs")] * (comm.size > 1)),
    ):
        with pytest.raises(InputError, match=words):
            call(comm, predict, "known.p.h5", "run", "--pairs", name, "-o", "no.h5")


@pytest.fixture
def named(comm, shared_path, monkeypatch) -> list[str]:
    """Names of the nodes of the graph in `named.p.h5`, whose edges have labels and a split."""
    monkeypatch.chdir(shared_path)
    names = [f"{'ab'[k % 2]}, \u00fc {k}" * (1 + k % 3) for k in range(N)]
    if comm.rank == 0:
        rng = np.random.default_rng(0)
        graph = networkx.gnp_random_graph(N, 0.15, seed=1)
        for k in graph:
            graph.nodes[k]["x"], graph.nodes[k]["y"] = rng.normal(size=4).tolist(), k % 3
        for a, b in graph.edges:
            graph.edges[a, b].update(edge_label=(a + b) % 3, edge_split=1 + (a * b) % 3)
        graph = networkx.relabel_nodes(graph, dict(enumerate(names)))
        hpcgnn.from_networkx(graph, "named.h5")
    comm.barrier()
    call(comm, partition, "named.h5", "--method", "random", "-o", "named.p.h5")
    return names


def read_ids(path: Path) -> list[tuple[str, ...]]:
    """Return the id columns of a predictions file, as text."""
    if path.suffix == ".npz":
        with np.load(path) as found:
            columns = [found[name].tolist() for name in found.files if name.endswith("_ids")]
    elif path.suffix == ".h5":
        with h5py.File(path) as found:
            columns = [[t.decode() for t in found[n][()]] for n in found if n.endswith("_ids")]
    else:
        read = pyarrow.parquet.read_table if path.suffix == ".parquet" else pyarrow.csv.read_csv
        table = read(path)
        first = [name for name in table.column_names if name.endswith("_id")]
        assert table.column_names[: len(first)] == first
        columns = [table[name].to_pylist() for name in first]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("task", "endings"), [("edge-classes", (".npz", ".csv")), ("links", (".parquet", ".h5"))]
)
def test_edges_and_pairs_are_written_by_name(comm, named, task, endings):
    """For edges, and for pairs given by name, also where a rank has none."""
    call(comm, train, "named.p.h5", "--task", task, *OF_PAIRS, "--epochs", 1, "--run-dir", "run")
    with h5py.File("named.h5") as graph:
        targets = np.repeat(np.arange(N), np.diff(graph["edges/indptr"][()]))
        told = np.stack([graph["edges/indices"][()], targets], axis=1)
        told = told if task == "edge-classes" else told[graph["edges/split"][()] > 1]
    for ending in endings:
        out = Path(f"out{ending}")
        call(comm, predict, "named.p.h5", "run", "-o", out)
        assert read_ids(out) == [(named[a], named[b]) for a, b in told]
    pairs = [(named[3], named[4]), (named[49], named[3])]
    if comm.rank == 0:
        np.save("pairs.npy", np.array(pairs))
        with Path("pairs.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("from", "to"), *pairs])
        with Path("bare.tsv").open("w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows(pairs)
    comm.barrier()
    for name in ("pairs.csv", "bare.tsv", "pairs.npy"):
        call(comm, predict, "named.p.h5", "run", "--pairs", name, "-o", out, "--force")
        assert read_ids(out) == pairs
    graph = load_partition("named.p.h5", comm)
    hpcgnn.predict(graph, "run", out=out, force=True)
    assert len(read_ids(out)) == len(told)


def test_unknown_node_names_are_refused(comm, named):
    call(comm, train, "named.p.h5", "--task", "links", *OF_PAIRS, "--epochs", 1, "--run-dir", "run")
    for ends, words in (
        ((named[0], "nobody"), r"no node has this id \(found 'nobody'\)"),
        ((named[0], "long" * 99), r"no node has this id \(found 'longlong"),
        ((named[0], ""), "row 2 must begin with two ids"),
        ((named[0], "x" * 200_000), "is not a text table: field larger"),
    ):
        if comm.rank == 0:
            with Path("pairs.csv").open("w", newline="") as file:
                csv.writer(file).writerows([(named[1], named[2]), ends])
            np.save("pairs.npy", np.array([ends]))
        comm.barrier()
        with pytest.raises(InputError, match=words):
            call(comm, predict, "named.p.h5", "run", "--pairs", "pairs.csv", "-o", "no.h5")
        with pytest.raises(InputError, match="no node has this id"):
            call(comm, predict, "named.p.h5", "run", "--pairs", "pairs.npy", "-o", "no.h5")
        comm.barrier()


def test_mismatched_options_are_refused(comm, copied):
    for options, words in (
        (("--task", "links", "--metric", "mae"), "--metric mae doesn't fit links: choose mrr"),
        (("--task", "values", "--target", "mass"), "no array of this name: speed"),
        (("--task", "links", "--labels-as-input", 0.5), "--labels-as-input needs one class per"),
    ):
        with pytest.raises(InputError, match=words):
            call(comm, train, "known.p.h5", *options, *SETTINGS, "--run-dir", "no")
    with pytest.raises(InputError, match="--task links needs a split of the edges: convert"):
        call(comm, train, "bare.p.h5", "--task", "links", *SETTINGS, "--run-dir", "no")
