"""No file is open for writing on two ranks at once, except with parallel HDF5."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.several_commands import BETWEEN

ROOT = Path(__file__).parents[3]
# Runs a program and logs from when to when this rank has a file open for writing, and what it gives
# a name to. A file that Python's open() opened counts to the end. Files that HDF5 itself opens are
# seen in h5py alone; with its other drivers Python opens them, or MPI.
RECORDER = """
import os, runpy, sys, time
from h5py import h5f, h5fd

rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
log = open(f"{sys.argv[1]}.{rank}", "a", buffering=1)
close = os.close
descriptors = {}

def note(name, kind="opens"):
    path = os.path.realpath(os.fsdecode(name))
    log.write(f"{kind} {time.monotonic_ns()} {path}\\n")
    return path

def audit(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        if not isinstance(arguments[0], int):
            note(arguments[0])
    elif event in ("os.rename", "os.link"):
        note(arguments[1], "names")

def opened(*arguments, real=os.open, **more):
    descriptor = real(*arguments, **more)
    if arguments[1] & (os.O_WRONLY | os.O_RDWR):
        descriptors[descriptor] = os.path.realpath(os.fsdecode(arguments[0]))
    return descriptor

def closed(descriptor):
    if descriptor in descriptors:
        note(descriptors.pop(descriptor), "closes")
    close(descriptor)

def watched(real):
    def call(name, flags, fapl, **more):
        if fapl.get_driver() == h5fd.SEC2 and flags != h5f.ACC_RDONLY:
            note(name)
        return real(name, flags, fapl=fapl, **more)
    return call

h5f.open, h5f.create = watched(h5f.open), watched(h5f.create)
os.open, os.close = opened, closed
sys.addaudithook(audit)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HPCGNN = """
import sys
from tests.train.several_commands import run

sys.exit(run(sys.argv[1:]))
"""
CARELESS = """
import os, sys
from pathlib import Path
import h5py
from mpi4py import MPI

folder, own = Path(sys.argv[1]), Path(sys.argv[1], str(os.getpid()))
(folder / "text").open("a").close()
raw = os.open(folder / "raw", os.O_RDWR | os.O_CREAT)
MPI.COMM_WORLD.Barrier()
os.close(raw)
own.touch()
own.replace(folder / "named")
if MPI.COMM_WORLD.rank == 0:
    h5py.File(folder / "hdf5", "w").close()
    os.close(os.open(folder / "in turn", os.O_RDWR | os.O_CREAT))
MPI.COMM_WORLD.Barrier()
h5py.File(folder / "hdf5", "r+", locking=False).close()
if MPI.COMM_WORLD.rank == 1:
    os.close(os.open(folder / "in turn", os.O_RDWR | os.O_CREAT))
"""
Spans = dict[str, list[tuple[int, float]]]


def spans(log: Path, root: str) -> Spans:
    """Return when each file below `root` was open for writing, by its relative path."""
    found: Spans = {}
    for line in log.read_text().splitlines():
        kind, time, path = line.split(" ", 2)
        if path.startswith(root):
            held = found.setdefault(path.removeprefix(root), [])
            if kind == "closes":
                held[-1] = (held[-1][0], int(time))
            else:  # two ranks must not give the same name at any time
                held.append((0 if kind == "names" else int(time), float("inf")))
    return found


def shared(first: Spans, second: Spans) -> set[str]:
    return {
        path
        for path in first.keys() & second.keys()
        if any(a < d and c < b for a, b in first[path] for c, d in second[path])
    }


@pytest.fixture
def ranks(loaded_python, tmp_path) -> Callable[..., tuple[Spans, Spans]]:
    """`ranks(code, ...)`: runs it on two ranks; what each of them wrote below `tmp_path`."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("no mpiexec found")

    def run(code: str, *arguments: object) -> tuple[Spans, Spans]:
        (tmp_path / "recorder.py").write_text(RECORDER)
        (tmp_path / "program.py").write_text(code)
        (tmp_path / "written").mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        programs = [tmp_path / "recorder.py", tmp_path / "log", tmp_path / "program.py"]
        done = subprocess.run(
            [mpiexec, "-n", "2", loaded_python, *programs, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        root = f"{(tmp_path / 'written').resolve()}/"
        first, second = (spans(tmp_path / f"log.{rank}", root) for rank in range(2))
        return first, second

    return run


def test_the_test_detects_two_writers(ranks, tmp_path):
    assert shared(*ranks(CARELESS, tmp_path / "written")) == {"text", "raw", "named", "hdf5"}


def test_no_file_has_two_writers_at_once(ranks, mpirun, tmp_path):
    graph, parts, run = (tmp_path / "written" / name for name in ("g.h5", "p.h5", "run"))
    graph.parent.mkdir()
    sizes = ("--nodes", 200, "--degree", 6, "--features", 4)
    assert mpirun(0, "generate", "sbm", graph, *sizes).returncode == 0
    partition = ("partition", graph, "--method", "random", "-o", parts)
    # Rows of the embedding are each rank's own, so both write into the checkpoints.
    options = ("--embedding", 4, "--hidden", 8, "--epochs", 2, "--checkpoint-every", 1)
    train = ("train", parts, *options, "--run-dir", run, "--profile", 1)
    predict = ("predict", parts, run / "checkpoints" / "best.h5", "-o", graph.parent / "out.h5")
    first, second = ranks(HPCGNN, *partition, BETWEEN, *train, BETWEEN, *predict)
    assert not shared(first, second)
    assert {"p.h5", "out.h5", "run/metrics.jsonl", "run/checkpoints/best.h5"} <= first.keys()
    assert any(path.startswith("run/checkpoints/.best.h5") for path in first.keys() & second.keys())
