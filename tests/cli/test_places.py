"""A rank that hangs in `partition` or `predict` is named together with its stage."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hpcgnn.cli import partition, predict
from hpcgnn.comm.communicator import Communicator
from tests.cli.verbs import call
from tests.partition.slabs import grid_edges, write_graph
from tests.storage.partitions import write_small

HANGING = """
import argparse, importlib, sys, time
from hpcgnn.comm import world

def main(comm):
    module, name = sys.argv[1].split(":")
    module = importlib.import_module(module)
    if comm.rank == 1:
        setattr(module, name, lambda *_, **__: time.sleep(100))
    verb = importlib.import_module(f"hpcgnn.cli.{sys.argv[2]}")
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(sys.argv[3:]), comm)

sys.exit(world.run(main))
"""


def mpiexec() -> str:
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or pytest.skip("no mpiexec found")


PLACES = [
    ("hpcgnn.partition.layout.assembly:build", partition, "lay out the parts"),
    ("hpcgnn.storage.write.part_writer:_append", partition, "write the partition file"),
    ("hpcgnn.train.open:load_partition", predict, "read the partition"),
    ("hpcgnn.train.prediction_writing:_write_slabs", predict, "write the predictions"),
]


def arguments(verb: ModuleType, comm: Communicator, folder: Path) -> list[object]:
    """Return the arguments for a call of the verb; rank 0 creates the files that it needs."""
    if verb is partition:
        if comm.rank == 0:
            write_graph(folder / "in.h5", grid_edges(5, 5), 25)
        options = ["--method", "random"]
    else:
        write_small(folder / "in.h5", comm, comm.size)
        options = ["--label-propagation"]
    comm.barrier()
    return [folder / "in.h5", *options, "-o", folder / "out.h5"]


@pytest.mark.mpi
@pytest.mark.parametrize(("function", "verb", "place"), PLACES)
def test_the_location_names_the_stage(comm, shared_path, monkeypatch, function, verb, place):
    given = arguments(verb, comm, shared_path)
    module, name = function.split(":")
    module = importlib.import_module(module)
    original, seen = getattr(module, name), set()

    def watched(*positional, **named):
        seen.add(comm.location.report().place)
        return original(*positional, **named)

    monkeypatch.setattr(module, name, watched)
    call(comm, verb, *given)
    assert seen <= {place}
    assert any(comm.allgather(bool(seen), "test"))


def test_the_error_of_a_hang_names_the_location(comm, tmp_path):
    function, verb, place = PLACES[0]
    given = [function, "partition", *arguments(verb, comm, tmp_path)]
    done = subprocess.run(
        [mpiexec(), "-n", "2", sys.executable, "-c", HANGING, *given],
        capture_output=True,
        text=True,
        timeout=90,
        env=os.environ | {"HPCGNN_TIMEOUT": "3"},
    )
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hpcgnn: error: ")]
    assert "but rank 1 (" in line and f") has been at {place!r} for " in line
