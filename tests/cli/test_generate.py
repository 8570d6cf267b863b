"""`hpcgnn generate` on one and several ranks, and invalid options."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mpi4py import MPI

from hpcgnn.cli import generate
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError
from hpcgnn.storage.generate.sizes import check_room
from hpcgnn.storage.read.graph_file import GraphFile
from tests.cli.verbs import call

SIZES = ("--nodes", 1000, "--degree", 12, "--features", 5, "--classes", 4, "--seed", 3)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["sbm", "rmat"])
def test_the_same_file_on_any_number_of_ranks(comm, shared_path, capsys, kind):
    several, alone = shared_path / "several.h5", shared_path / "alone.h5"
    call(comm, generate, kind, several, *SIZES, "--compress")
    if comm.rank == 0:
        own = Communicator(MPI.COMM_SELF)
        call(own, generate, kind, alone, *SIZES, "--compress")
        own.close()
        said = capsys.readouterr().out
        assert "1,000 nodes" in said and "4 classes" in said
        assert several.read_bytes() == alone.read_bytes()
    comm.barrier()
    with GraphFile(several) as graph:
        graph.verify()
        assert graph.num_features == 5 and graph.num_classes == 4 and graph.num_splits == 1
        assert graph.num_edges == pytest.approx(12_000, rel=0.05)
        assert graph.config["kind"] == kind and graph.config["seed"] == 3


@pytest.mark.mpi
def test_an_existing_file_is_kept(comm, shared_path):
    path = shared_path / "g.h5"
    if comm.rank == 0:
        path.write_text("precious")
    comm.barrier()
    with pytest.raises(InputError, match=r"g\.h5: exists already: choose another name, or use --f"):
        call(comm, generate, "rmat", path, *SIZES)
    assert path.read_text() == "precious"


def test_graphs_without_features_or_classes(mpirun, tmp_path):
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
        (("--degree", -1), "--degree must lie in 0 .. 1000"),
        (("--degree", "nan"), "--degree must lie in 0 .. 1000"),
        (("--nodes", 5), "--degree must lie in 0 .. 5, the number of --nodes (found 12.0)"),
        (("--degree", 900), "lower --degree"),
        (("--features", -1), "--features must lie in"),
        (("--classes", 1001), "--classes must lie in 0 .. 1000, the number of --nodes"),
        (("--seed", -1), "--seed must lie in"),
        (("--noise", "inf"), "--noise must lie in 0 .. 10^6"),
        (("--homophily", 1.5), "--homophily must lie in 0 .. 1"),
        (("--exponent", 2), "--exponent must be above 2"),
        (("--nodes", 1 << 47, "--degree", 1), "of memory, and "),
        (("--nodes", 1 << 47, "--degree", 0), "GB are free: lower --nodes, --degree"),
        (
            ("--nodes", 1 << 47, "--degree", 0, "--compress"),
            " GB are free: lower --nodes, --degree",
        ),
        (("--split", "60/40"), "--split must be three numbers"),
        (("--split", "0/0/0"), "--split must be three shares"),
        (("--nodes", "many"), "argument --nodes: must be a whole number"),
    ],
)
def test_wrong_options_are_refused_in_one_line(capsys, tmp_path, options, words):
    from hpcgnn.cli import main

    command = ["generate", "sbm", tmp_path / "g.h5", *SIZES, *options]
    assert main.main([str(word) for word in command]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_nearly_full_disk_is_described_by_readable_amounts(tmp_path, monkeypatch):
    full = SimpleNamespace(free=20_300)
    monkeypatch.setattr("hpcgnn.storage.generate.sizes.shutil.disk_usage", lambda _: full)
    with pytest.raises(InputError, match=r"need 85\.0 kB, and 20\.3 kB are free: lower --nodes"):
        check_room(tmp_path / "g.h5", 1000, 12, 5, 4, compress=False)


def test_options_of_the_other_kind_of_graph_are_refused(mpirun, tmp_path):
    done = mpirun(0, "generate", "rmat", tmp_path / "g.h5", *SIZES, "--homophily", 0.5)
    assert done.returncode == 2
    assert done.stderr.strip() == "hpcgnn: error: --homophily is an option of sbm, not of rmat"


def test_a_file_that_cannot_be_written_ends_all_ranks(mpirun, tmp_path):
    done = mpirun(2, "generate", "sbm", tmp_path / "absent" / "g.h5", *SIZES, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("no such folder: create it first")
