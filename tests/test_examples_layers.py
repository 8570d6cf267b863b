"""The examples of layers: they learn, and print the same on any number of ranks."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from mpi4py import MPI

from hpcgnn.cli import partition
from hpcgnn.cli import train as train_verb
from hpcgnn.comm.communicator import Communicator
from tests.cli.verbs import call

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("mesh_regression", "heterogeneous")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80


@pytest.mark.mpi
def test_a_network_on_a_mesh_learns_the_same_on_any_number_of_ranks(comm, shared_path, tmp_path):
    pytest.importorskip("scipy")
    found = list(example("mesh_regression").train(comm, shared_path, side=9, epochs=40))
    alone = Communicator(MPI.COMM_SELF)
    expected = list(example("mesh_regression").train(alone, tmp_path, side=9, epochs=8))
    assert found[:8] == pytest.approx(expected, rel=1e-4)
    assert found[-1] < found[0] / 2


@pytest.mark.mpi
def test_relational_attention_learns_the_same_on_any_number_of_ranks(comm, shared_path, tmp_path):
    sizes = {"papers": 120, "epochs": 12}
    *found, accuracy = example("heterogeneous").train(comm, shared_path, **sizes)
    alone = Communicator(MPI.COMM_SELF)
    *expected, expected_accuracy = example("heterogeneous").train(alone, tmp_path, **sizes)
    assert found == pytest.approx(expected, rel=1e-3)
    assert accuracy == pytest.approx(expected_accuracy, abs=0.06)
    assert found[-1] < found[0] / 2 and accuracy > 0.4


@pytest.mark.mpi
def test_its_graph_trains_from_the_command_line(comm, shared_path, capsys):
    if comm.rank == 0:
        example("heterogeneous").write_graph(shared_path / "papers.h5", papers=120)
    comm.barrier()
    call(comm, partition, shared_path / "papers.h5", "-o", shared_path / "p.h5")
    options = ["--model", "rgat", "--layers", 2, "--hidden", 16, "--heads", 2, "--dropout", 0]
    folder = ["--epochs", 4, "--run-dir", shared_path / "run"]
    call(comm, train_verb, shared_path / "p.h5", *options, *folder)
    if comm.rank == 0:
        said = capsys.readouterr().out
        assert "not used" not in said


def test_four_ranks_print_what_one_prints(mpirun, tmp_path, monkeypatch):
    """As the first line of the example says, but on a small mesh."""
    pytest.importorskip("scipy")
    script = (EXAMPLES / "mesh_regression.py").read_text()
    small = script.replace("side=30, epochs=100", "side=8, epochs=3")
    assert small != script
    (tmp_path / "small_mesh.py").write_text(small)
    losses = []
    for ranks in (1, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        env = {"PYTHONPATH": str(tmp_path)}
        done = mpirun(ranks, folder, module="small_mesh", env=env)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == ranks
        losses += [[float(x) for x in re.findall(r"\d\.\d+", line)] for line in lines]
    for one in losses[1:]:
        assert one == pytest.approx(losses[0], rel=1e-4)
