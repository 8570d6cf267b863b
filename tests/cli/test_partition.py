"""`hpcgnn partition` on the command line: files, figures, and errors in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from hpcgnn.cli import partition
from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import InputError, OutputError
from hpcgnn.storage.read.partition_file import PartitionFile
from tests.cli.verbs import call, refused
from tests.partition.slabs import grid_edges, write_graph


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A 30 x 30 grid: perfect halves are 30 edges apart."""
    return write_graph(tmp_path_factory.mktemp("graph") / "grid.h5", grid_edges(30, 30), 900)


def read(path: Path) -> tuple[dict, np.ndarray]:
    """Return the header of a partition file and the part of each node; check every part."""
    with PartitionFile(path) as file:
        owner = np.full(file.counts.num_nodes, -1)
        for part in range(file.num_parts):
            owner[file.read_part(part).ids] = part
        return file.header, owner


def test_default_file_and_report(mpirun, grid, tmp_path, monkeypatch, parmetis):
    monkeypatch.chdir(tmp_path)
    result = mpirun(2, "partition", grid)
    assert result.returncode == 0, result.stderr
    header, owner = read(tmp_path / "partitions" / "grid.p2.h5")
    report = header["report"]
    source, target = grid_edges(30, 30)
    cut = int((owner[source] != owner[target]).sum())
    assert header["method"] == "parmetis" and header["symmetric"] == 1
    assert header["config"]["seed"] == 0
    assert report["edge_cut"] == cut and 60 <= cut <= 90
    assert report["random"]["edge_cut"] > 1500
    assert report["nodes"] == np.bincount(owner).tolist()
    assert max(report["balance"].values()) < 1.6
    lines = [line for line in result.stdout.splitlines() if not re.match(r"\d\d:\d\d:", line)]
    assert lines[0].startswith("auto takes parmetis: it is installed and fits (ParMETIS")
    assert lines[1].split() == ["parmetis", "random"]
    named = {" ".join(line.split()[:2]) for line in lines}
    assert {"edge cut", "communication volume,", "halo nodes,", "balance of"} <= named
    assert "partitions/grid.p2.h5: 2 parts" in lines[-1] and "peak memory" in lines[-1]


@pytest.fixture
def shared_grid(comm, shared_path) -> Path:
    """The grid, in a folder that is shared by all ranks of the test."""
    if comm.rank == 0:
        write_graph(shared_path / "grid.h5", grid_edges(30, 30), 900)
    comm.barrier()
    return shared_path / "grid.h5"


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("parts", "method"),
    [(1, "streaming"), (3, "streaming"), (2, "random"), (3, "random"), (1, "block")],
)
def test_number_of_parts_may_differ_from_number_of_ranks(comm, shared_grid, parts, method):
    out = shared_grid.parent / "new" / "out.h5"
    options = ("--parts", parts, "--method", method, "-o", out, "--seed", 3)
    call(comm, partition, shared_grid, *options)
    header, owner = read(out)
    assert header["num_parts"] == parts and header["config"]["seed"] == 3
    assert set(owner) == set(range(parts))


@pytest.mark.several_ranks
@pytest.mark.mpi
def test_the_file_is_the_same_from_any_number_of_ranks(comm, shared_grid):
    several, alone = shared_grid.with_name("several.h5"), shared_grid.with_name("alone.h5")
    options = ("--parts", 3, "--method", "random", "-o")
    call(comm, partition, shared_grid, *options, several)
    if comm.rank == 0:
        own = Communicator(MPI.COMM_SELF)
        call(own, partition, shared_grid, *options, alone)
        own.close()
        assert read(several)[0]["fingerprint"] == read(alone)[0]["fingerprint"]
    comm.barrier()


@pytest.mark.parametrize("name", ["4elt", "rgg_n_2_15_s0"])
def test_known_graphs_are_cut_as_well_as_by_metis(mpirun, data, tmp_path, parmetis, name):
    """METIS cuts 4elt into four at about 350 and rgg at about 520 undirected edges."""
    graph = tmp_path / f"{name}.h5"
    assert mpirun(0, "convert", data / "metis" / f"{name}.graph", graph).returncode == 0
    assert mpirun(2, "partition", graph, "--parts", 4, "-o", tmp_path / "out.h5").returncode == 0
    report = read(tmp_path / "out.h5")[0]["report"]
    best = {"4elt": 350, "rgg_n_2_15_s0": 520}[name]
    assert report["edge_cut"] / 2 < 1.5 * best
    assert report["communication_volume"] < 0.02 * report["random"]["communication_volume"]
    assert report["balance"]["edges"] < 1.1


@pytest.mark.slow
def test_arxiv_in_four_parts_is_good_and_needs_little_memory(mpirun, data, tmp_path, parmetis):
    """At most a quarter of a random partition's volume, edge balance below 1.3, below 3 GB."""
    graph, out, features = (tmp_path / name for name in ("arxiv.h5", "out.h5", "x.npy"))
    np.save(features, np.random.default_rng(0).normal(size=(169_343, 128)).astype(np.float32))
    source = data / "arxiv_structure.npz"
    assert mpirun(0, "convert", source, graph, "--features", features).returncode == 0
    result = mpirun(4, "partition", graph, "-o", out)
    assert result.returncode == 0, result.stderr
    report = read(out)[0]["report"]
    assert report["communication_volume"] <= 0.25 * report["random"]["communication_volume"]
    assert report["balance"]["edges"] <= 1.3
    mebibytes = result.stdout.split("peak memory ")[1].split()[0].replace(",", "")
    assert int(mebibytes) < 3000
    options = ("--model", "sage", "--hidden", 16, "--epochs", 1, "--run-dir", tmp_path / "run")
    result = mpirun(4, "train", out, *options)
    assert result.returncode == 0 and "epoch 1/1  loss" in result.stdout, result.stderr


def test_bad_options_are_refused(mpirun, grid, tmp_path):
    out = tmp_path / "out.h5"
    refused(mpirun(0, "partition", grid, "--parts", 0, "-o", out), "--parts", "0")
    refused(mpirun(0, "partition", grid, "--method", "best", "-o", out), "--method")
    refused(mpirun(0, "partition", grid, "--imbalance", 0.9, "-o", out), "--imbalance", "0.9")
    refused(
        mpirun(2, "partition", grid, "--method", "block", "-o", grid),
        "is an input of this command",
        "grid.h5",
    )
    assert not out.exists()


def refused_by_all(comm: Communicator, match: str, *arguments: object) -> None:
    with pytest.raises(InputError, match=match):
        call(comm, partition, *arguments)
    comm.barrier()


@pytest.mark.mpi
def test_bad_graphs_are_refused_and_nothing_is_left(comm, shared_grid):
    folder = shared_grid.parent
    out = folder / "out" / "out.h5"
    if comm.rank == 0:
        (folder / "text.h5").write_text("no graph")
        write_graph(folder / "few.h5", grid_edges(1, 3), 3)
        data = bytearray(shared_grid.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        (folder / "broken.h5").write_bytes(data)
        shutil.copy(shared_grid, folder / "swapped.h5")
        with h5py.File(folder / "swapped.h5", "r+") as file:
            file["edges/indices"][:2] = file["edges/indices"][:2][::-1]
    comm.barrier()
    options = ("--method", "random", "-o", out)
    for name in ("none.h5", "text.h5", "broken.h5"):
        refused_by_all(comm, name, folder / name, *options)
    refused_by_all(comm, "swapped.h5.*fingerprint", folder / "swapped.h5", *options)
    refused_by_all(comm, "few.h5.*4 parts of 3 nodes", folder / "few.h5", "--parts", 4, *options)
    assert not out.parent.exists()
    below = folder / "text.h5" / "out.h5"
    with pytest.raises(OutputError, match=r"text\.h5"):
        call(comm, partition, shared_grid, *options[:-1], below)


@pytest.mark.mpi
def test_the_error_without_parmetis_names_the_other_methods(comm, shared_grid, monkeypatch, capsys):
    out = shared_grid.with_name("out.h5")
    monkeypatch.setenv("HPCGNN_PARMETIS", str(shared_grid.with_name("nowhere.so")))
    words = "nowhere.so.*HPCGNN_PARMETIS.*kaminpar, streaming, random or block"
    options = ("--parts", 2, "-o", out)
    refused_by_all(comm, words, shared_grid, "--method", "parmetis", *options)
    assert not out.exists()
    call(comm, partition, shared_grid, *options)
    if comm.rank == 0:
        assert "auto takes kaminpar: ParMETIS can't be used" in capsys.readouterr().out


# Debian's Open MPI and PT-Scotch, besides the MPI of this environment


def debian(pattern: str) -> str:
    found = sorted(Path("/usr/lib").glob(pattern))
    if not found:
        pytest.skip(f"no /usr/lib/{pattern}: apt install libscotchparmetis-dev openmpi-bin")
    return str(found[0])


@pytest.fixture
def open_mpi() -> dict[str, str]:
    """The environment variables that make mpi4py use Debian's Open MPI."""
    return {
        "MPI4PY_MPIABI": "openmpi",
        "MPI4PY_LIBMPI": debian("*/libmpi.so.40"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("width", ["32", "64"])
def test_scotch_under_open_mpi(open_mpi, grid, tmp_path, width):
    launcher = shutil.which("mpiexec.openmpi")
    if launcher is None:
        pytest.skip("no mpiexec.openmpi: apt install openmpi-bin")
    library = debian(f"*/parmetis-int{width}/libparmetis.so")
    out = tmp_path / "out.h5"
    command = [
        sys.executable,
        "-m",
        "hpcgnn.cli.main",
        "partition",
        grid,
        "--parts",
        "2",
        "--method",
        "parmetis",
        "-o",
        out,
    ]
    result = subprocess.run(
        [launcher, "-n", "3", *command],
        env=os.environ | open_mpi | {"HPCGNN_PARMETIS": library},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert 60 <= read(out)[0]["report"]["edge_cut"] <= 100


def test_scotch_for_open_mpi_under_mpich_is_refused(mpirun, grid, tmp_path):
    if "MPICH" not in MPI.Get_library_version():
        pytest.skip("this process does not run MPICH")
    library = debian("*/parmetis-int64/libparmetis.so")
    result = mpirun(
        2,
        "partition",
        grid,
        "--method",
        "parmetis",
        "-o",
        tmp_path / "out.h5",
        env={"HPCGNN_PARMETIS": library},
    )
    refused(result, "built for Open MPI", "this process runs MPICH", "--method kaminpar")
