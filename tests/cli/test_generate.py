"""`hpcgnn generate` on one and several ranks, and what it refuses."""

from __future__ import annotations

import pytest

from hpcgnn.storage.read.graph_file import GraphFile

SIZES = ("--nodes", 1000, "--degree", 12, "--features", 5, "--classes", 4, "--seed", 3)


@pytest.mark.parametrize("kind", ["sbm", "rmat"])
def test_the_same_file_on_one_and_on_three_ranks(mpirun, tmp_path, kind):
    for ranks in (0, 3):
        done = mpirun(ranks, "generate", kind, tmp_path / f"{ranks}.h5", *SIZES, "--compress")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 2  # what begins, and what came out
        assert "1,000 nodes" in done.stdout and "4 classes" in done.stdout
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "3.h5").read_bytes()
    with GraphFile(tmp_path / "3.h5") as graph:
        graph.verify()
        assert graph.num_features == 5 and graph.num_classes == 4 and graph.num_splits == 1
        assert graph.num_edges == pytest.approx(12_000, rel=0.05)
        assert graph.config["kind"] == kind and graph.config["seed"] == 3


def test_an_existing_file_is_kept(mpirun, tmp_path):
    path = tmp_path / "g.h5"
    path.write_text("precious")
    done = mpirun(2, "generate", "rmat", path, *SIZES)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("hpcgnn:")]
    assert lines == [f"hpcgnn: error: {path}: exists already: choose another name, or say --force"]
    assert path.read_text() == "precious"


def test_nodes_without_features_or_classes(mpirun, tmp_path):
    for kind in ("sbm", "rmat"):
        path = tmp_path / f"{kind}.h5"
        options = (
            "--nodes",
            50,
            "--degree",
            4,
            "--features",
            0,
            "--classes",
            0,
            "--split",
            "1/0/0",
        )
        done = mpirun(0, "generate", kind, path, *options)
        assert done.returncode == 0, done.stderr
        with GraphFile(path) as graph:
            nodes = graph.read_nodes(0, 50)
            assert nodes.features is None and nodes.labels is None
            assert set(nodes.split.ravel()) == {1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nodes", 0), "--nodes must lie in 1 .. 2^48 (found 0)"),
        (("--degree", -1), "--degree must lie in 0 .. N"),
        (("--degree", "nan"), "--degree must lie in 0 .. N"),
        (("--degree", 900), "lower --degree"),
        (("--features", -1), "--features must lie in"),
        (("--classes", 1001), "--classes must lie in 0 .. N"),
        (("--seed", -1), "--seed must lie in"),
        (("--noise", "inf"), "--noise must lie in 0 .. 10^6"),
        (("--homophily", 1.5), "--homophily must lie in 0 .. 1"),
        (("--exponent", 2), "--exponent must be above 2"),
        (("--split", "60/40"), "--split must be three numbers"),
        (("--split", "0/0/0"), "--split must be three shares"),
        (("--nodes", "many"), "argument --nodes: invalid int value"),
    ],
)
def test_wrong_options_are_refused_in_one_line(capsys, tmp_path, options, words):
    from hpcgnn.cli import main

    command = ["generate", "sbm", tmp_path / "g.h5", *SIZES, *options]
    assert main.main([str(word) for word in command]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_of_the_other_kind(mpirun, tmp_path):
    done = mpirun(2, "generate", "rmat", tmp_path / "g.h5", *SIZES, "--homophily", 0.5)
    assert done.returncode == 2
    assert done.stderr.strip() == "hpcgnn: error: --homophily is an option of sbm, not of rmat"


def test_a_file_that_cannot_be_written_ends_all_ranks(mpirun, tmp_path):
    done = mpirun(3, "generate", "sbm", tmp_path / "absent" / "g.h5", *SIZES, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("no such folder: create it first")
