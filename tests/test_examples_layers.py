"""The examples of layers: they learn, and print the same on any number of ranks."""

from __future__ import annotations

import importlib.util
import json
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


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def trained(name: str, comm: Communicator, folder: Path, **sizes: int) -> list[dict]:
    """Return the records that the example writes to metrics.jsonl."""
    example(name).train(comm, folder, **sizes)
    comm.barrier()
    return records(folder)


@pytest.mark.several_ranks
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "sizes"), [("mesh_regression", {"side": 9}), ("heterogeneous", {"papers": 120})]
)
def test_an_example_learns_the_same_on_any_number_of_ranks(
    comm, shared_path, tmp_path, name, sizes
):
    pytest.importorskip("scipy")
    found = trained(name, comm, shared_path, epochs=16, **sizes)
    (tmp_path / "alone").mkdir()
    expected = trained(name, Communicator(MPI.COMM_SELF), tmp_path / "alone", epochs=4, **sizes)
    losses = [record["loss"] for record in found]
    assert losses[:4] == pytest.approx([record["loss"] for record in expected], rel=1e-3)
    assert losses[-1] < losses[0] / 2


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


def test_several_ranks_print_what_one_prints(mpirun, tmp_path):
    """As in the first line of the example, but on a small mesh."""
    pytest.importorskip("scipy")
    script = (EXAMPLES / "mesh_regression.py").read_text()
    small = script.replace("side=30, epochs=100", "side=8, epochs=3")
    assert small != script
    (tmp_path / "small_mesh.py").write_text(small)
    several, alone = tmp_path / "several", tmp_path / "alone"
    for folder in (several, alone):
        folder.mkdir()
    done = mpirun(2, several, module="small_mesh", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    expected = trained("mesh_regression", Communicator(MPI.COMM_SELF), alone, side=8, epochs=3)
    assert len(expected) == 3
    losses = [record["loss"] for record in expected]
    assert [record["loss"] for record in records(several)] == pytest.approx(losses, rel=1e-4)
