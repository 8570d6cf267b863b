"""A rank that hangs in partition or predict is named with what it was doing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("function", "verb", "place"),
    [
        ("hpcgnn.partition.layout.assembly:build", "partition", "lay out the parts"),
        ("hpcgnn.storage.write.part_writer:_append", "partition", "write the partition file"),
        ("hpcgnn.train.open:load_partition", "predict", "read the partition"),
        ("hpcgnn.train.prediction_writing:_write_slabs", "predict", "write the predictions"),
    ],
)
def test_the_place_is_told(comm, tmp_path, function, verb, place):
    if verb == "partition":
        write_graph(tmp_path / "in.h5", grid_edges(5, 5), 25)
        options = ["--method", "random"]
    else:
        write_small(tmp_path / "in.h5", comm, 2)
        options = ["--label-propagation"]
    arguments = [function, verb, tmp_path / "in.h5", *options, "-o", tmp_path / "out.h5"]
    done = subprocess.run(
        [mpiexec(), "-n", "2", sys.executable, "-c", HANGING, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env=os.environ | {"HPCGNN_TIMEOUT": "3"},
    )
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hpcgnn: error: ")]
    assert "but rank 1 (" in line and f") is at {place!r} for " in line
