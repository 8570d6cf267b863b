"""`hpcgnn partition` as a user meets it: files, figures, and refusals in one line."""

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

from hpcgnn.storage.read.partition_file import PartitionFile
from tests.cli.verbs import refused
from tests.partition.slabs import grid_edges, write_graph


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A 30 x 30 grid: perfect halves are 30 edges apart."""
    return write_graph(tmp_path_factory.mktemp("graph") / "grid.h5", grid_edges(30, 30), 900)


def read(path: Path) -> tuple[dict, np.ndarray]:
    """Header of a partition file and the part of each node; every part is checked."""
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
    assert lines[0].startswith("auto takes parmetis: it is there and fits (ParMETIS")
    assert lines[1].split() == ["parmetis", "random"]
    named = {" ".join(line.split()[:2]) for line in lines}
    assert {"edge cut", "communication volume,", "halo nodes,", "balance of"} <= named
    assert "partitions/grid.p2.h5: 2 parts" in lines[-1] and "peak memory" in lines[-1]


@pytest.mark.parametrize(("ranks", "parts"), [(0, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("method", ["streaming", "random", "block"])
def test_parts_need_not_be_ranks(mpirun, grid, tmp_path, ranks, parts, method):
    out = tmp_path / "new" / "out.h5"
    options = ("--parts", parts, "--method", method, "-o", out, "--seed", 3)
    result = mpirun(ranks, "partition", grid, *options)
    assert result.returncode == 0, result.stderr
    header, owner = read(out)
    assert header["num_parts"] == parts and header["config"]["seed"] == 3
    assert set(owner) == set(range(parts))


def test_the_file_is_the_same_from_any_number_of_ranks(mpirun, grid, tmp_path):
    fingerprints = set()
    for ranks in (1, 3):
        out = tmp_path / f"{ranks}.h5"
        options = ("--parts", 3, "--method", "random", "-o", out)
        assert mpirun(ranks, "partition", grid, *options).returncode == 0
        fingerprints.add(read(out)[0]["fingerprint"])
    assert len(fingerprints) == 1


@pytest.mark.parametrize("name", ["4elt", "rgg_n_2_15_s0"])
def test_known_graphs_are_cut_as_metis_does(mpirun, data, tmp_path, parmetis, name):
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
def test_arxiv_at_four_parts(mpirun, data, tmp_path, parmetis):
    """At most a quarter of a random partition's volume, edges within 1.3, below 3 GB in all."""
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
    options = ("--model", "sage", "--hidden", 64, "--epochs", 2, "--run-dir", tmp_path / "run")
    result = mpirun(4, "train", out, *options)
    assert result.returncode == 0 and "epoch 2/2  loss" in result.stdout, result.stderr


def test_bad_options_are_refused(mpirun, grid, tmp_path):
    out = tmp_path / "out.h5"
    refused(mpirun(2, "partition", grid, "--parts", 0, "-o", out), "--parts", "0")
    refused(mpirun(0, "partition", grid, "--method", "best", "-o", out), "--method")
    refused(mpirun(0, "partition", grid, "--imbalance", 0.9, "-o", out), "--imbalance", "0.9")
    refused(
        mpirun(2, "partition", grid, "--method", "block", "-o", grid), "this very call", "grid.h5"
    )
    few = write_graph(tmp_path / "few.h5", grid_edges(1, 3), 3)
    refused(mpirun(2, "partition", few, "--parts", 4, "-o", out), "few.h5", "4 parts of 3 nodes")
    assert not out.exists()


def test_bad_graphs_are_refused_and_nothing_is_left(mpirun, grid, tmp_path):
    out = tmp_path / "out" / "out.h5"
    options = ("--method", "random", "-o", out)
    refused(mpirun(2, "partition", tmp_path / "none.h5", *options), "none.h5")
    text = tmp_path / "text.h5"
    text.write_text("no graph")
    refused(mpirun(2, "partition", text, *options), "text.h5")
    broken = tmp_path / "broken.h5"
    data = bytearray(grid.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    broken.write_bytes(data)
    refused(mpirun(2, "partition", broken, *options), "broken.h5")
    swapped = Path(shutil.copy(grid, tmp_path / "swapped.h5"))
    with h5py.File(swapped, "r+") as file:
        file["edges/indices"][:2] = file["edges/indices"][:2][::-1]
    refused(mpirun(2, "partition", swapped, *options), "swapped.h5", "fingerprint")
    assert not out.parent.exists()


def test_an_output_that_cannot_be_written_is_refused(mpirun, grid, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out.h5"
    refused(mpirun(2, "partition", grid, "--method", "block", "-o", out), "file")


def test_no_usable_parmetis_is_told_with_the_other_methods(mpirun, grid, tmp_path):
    out = tmp_path / "out.h5"
    environment = {"HPCGNN_PARMETIS": str(tmp_path / "nowhere.so")}
    asked = ("--method", "parmetis", "-o", out)
    result = mpirun(2, "partition", grid, *asked, env=environment)
    refused(result, "nowhere.so", "HPCGNN_PARMETIS", "kaminpar, streaming, random or block")
    assert not out.exists()
    result = mpirun(2, "partition", grid, "-o", out, env=environment)
    assert result.returncode == 0 and "auto takes kaminpar: ParMETIS can't be used" in result.stdout


# Debian's Open MPI and PT-Scotch, beside whatever MPI this environment has


def debian(pattern: str) -> str:
    found = sorted(Path("/usr/lib").glob(pattern))
    if not found:
        pytest.skip(f"no /usr/lib/{pattern}: apt install libscotchparmetis-dev openmpi-bin")
    return str(found[0])


@pytest.fixture
def open_mpi() -> dict[str, str]:
    """What makes mpi4py take Debian's Open MPI."""
    return {
        "MPI4PY_MPIABI": "openmpi",
        "MPI4PY_LIBMPI": debian("*/libmpi.so.40"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMP_NUM_THREADS": "1",
    }


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
    from mpi4py import MPI

    if "MPICH" not in MPI.Get_library_version():
        pytest.skip("this process does not run MPICH")
    library = debian("*/parmetis-int64/libparmetis.so")
    result = mpirun(
        2, "partition", grid, "--method", "parmetis", "-o", tmp_path / "out.h5",
        env={"HPCGNN_PARMETIS": library},
    )  # fmt: skip
    refused(result, "built for Open MPI", "this process runs MPICH", "--method kaminpar")
