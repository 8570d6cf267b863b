"""The names that `import hpcgnn` provides, and what the import costs."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hpcgnn
from hpcgnn.cli.main import VERBS


def test_public_names_are_imported_at_first_use():
    from hpcgnn.nn.sage import SAGEConv
    from hpcgnn.partition.load import load_partition

    assert hpcgnn.load_partition is load_partition
    assert hpcgnn.nn.SAGEConv is SAGEConv
    assert hpcgnn.sum_gradients.__module__ == "hpcgnn.nn.gradients"
    assert callable(hpcgnn.pyparmetis.load)
    assert importlib.import_module("hpcgnn.pyparmetis") is hpcgnn.pyparmetis
    assert set(hpcgnn.__all__) <= set(dir(hpcgnn))
    with pytest.raises(AttributeError, match="no attribute 'soup'"):
        hpcgnn.soup  # noqa: B018


def test_the_contents_of_a_wheel(tmp_path):
    """The compiled kernels are among the sources here; everything else is built again."""
    root = Path(__file__).parents[1]
    build = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    build += ["build_py", "--build-lib", tmp_path / "lib"]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    program = """
import sys
import hpcgnn
from hpcgnn.cli.main import main
sys.exit(not hpcgnn.__file__.startswith(sys.argv[1]) or main(["jobs", "."]))
"""
    command = [sys.executable, "-P", "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scripts = {path.name for path in (root / "jobs").rglob("*.*") if path.suffix != ".pyc"}
    assert {path.name for path in (tmp_path / "jobs").rglob("*.*")} == scripts
    kernels = tmp_path / "lib/hpcgnn/kernels"
    assert (kernels / "cpu/libhpcgnn_cpu.so").is_file()
    assert (kernels / "cuda/src/gat_forward.cu").is_file()
    assert (tmp_path / "lib/hpcgnn/partition/layout/libhpcgnn_layout.so").is_file()
    assert (tmp_path / "lib/hpcgnn/storage/libhpcgnn_storage.so").is_file()


def test_import_loads_neither_torch_nor_mpi_and_changes_nothing():
    program = """
import ctypes, os, sys
before = dict(os.environ)
class Library(ctypes.CDLL):
    def __init__(self, *args, **keywords):
        sys.exit("loads a library")
ctypes.CDLL = Library
import hpcgnn
print({*sys.modules} & {"torch", "mpi4py", "h5py"} or "neither", before == dict(os.environ))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "neither True", done.stderr


def test_the_command_line_is_parsed_before_torch_is_loaded():
    """Signals are handled, and mistyped options reported, before the seconds that torch takes."""
    verbs = sorted(set(VERBS) - {"plan"})
    program = """
import importlib, sys
for verb in sys.argv[1:]:
    importlib.import_module(f"hpcgnn.cli.{verb}")
    print(verb, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, *verbs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{verb} False" for verb in verbs], done.stderr


@pytest.mark.parametrize(("result", "status"), [("None", 0), ("0", 0), ("3", 3)])
def test_run_exits_with_the_status_of_main(monkeypatch, result, status):
    told = []
    monkeypatch.setattr("hpcgnn.system.set_up", lambda: told.append("memory"))
    monkeypatch.setattr("hpcgnn.comm.world.run", lambda main, timeout: main("comm"))

    def main(comm):
        told.append(comm)
        return {"None": None, "0": 0, "3": 3}[result]

    if status:
        with pytest.raises(SystemExit) as left:
            hpcgnn.run(main)
        assert left.value.code == status
    else:
        hpcgnn.run(main)
    assert told == ["memory", "comm"]


def test_little_is_loaded_before_signals_are_handled():
    """Before that, Ctrl-C shows a traceback, and Hydra returns the bare number of a signal."""
    program = """
import sys
before = set(sys.modules)
import hpcgnn.__main__
print(*sorted(name for name in set(sys.modules) - before if name.startswith("hpcgnn")))
print({"typing", "socket", "re", "dataclasses"} & (set(sys.modules) - before) or "few")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ours = ["", ".__main__", ".comm", ".comm.launcher", ".comm.liveness", ".comm.liveness.early"]
    expected = " ".join(f"hpcgnn{name}" for name in [*ours, ".version"])
    assert done.stdout.splitlines() == [expected, "few"], done.stderr


INTERRUPTED = """
import os, runpy, signal, sys
name, number = sys.argv.pop(1), int(sys.argv.pop(1))
class Finder:
    def find_spec(found, path=None, target=None):
        if found == name:
            os.kill(os.getpid(), number)
for found in [found for found in sys.modules if found.split(".")[0] == "argparse"]:
    del sys.modules[found]
sys.meta_path.insert(0, Finder)
runpy.run_module("hpcgnn", run_name="__main__", alter_sys=True)
"""


def interrupted(module, number, **options):
    """Run the command with a finder that sends a signal at the import of one of its modules."""
    command = [sys.executable, "-c", INTERRUPTED, module, str(int(number)), "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("module", ["hpcgnn.cli.main", "hpcgnn.comm.world", "argparse"])
def test_an_interrupt_while_the_command_is_loaded_is_silent(module):
    done = interrupted(module, signal.SIGINT)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


INTERRUPTED_TWICE = """
import os, signal, sys
import hpcgnn.cli.main as cli
number = int(sys.argv.pop(1))
def once(*given):
    os.kill(os.getpid(), number)
    signal.sigtimedwait([], 5)
cli.Command.read = once
cli.early.end_without_mpi = once
from hpcgnn.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_another_copy_of_a_signal_does_not_change_the_status_of_mpiexec(number):
    """The launcher and the terminal send one each; the second came with Python's own handlers."""
    told = {"PMI_RANK": "0", "PMI_SIZE": "2"}
    command = [sys.executable, "-c", INTERRUPTED_TWICE, str(int(number)), "info"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | told
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_command_is_loaded_ends_all_ranks_of_mpiexec(number):
    """Hydra would return the number of the signal as the status of the job."""
    hydra, rank = socket.socketpair()
    with hydra, rank:
        told = {"HYDI_CONTROL_FD": "9", "PMI_FD": str(rank.fileno())}
        place = {"PMI_RANK": "0", "PMI_SIZE": "2"}
        environment = os.environ | told | place
        done = interrupted("hpcgnn.comm.world", number, env=environment, pass_fds=[rank.fileno()])
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
        assert hydra.recv(80) == f"cmd=abort exitcode={128 + number}\n".encode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_command_has_ended_keeps_its_status(number):
    program = f"""
import atexit, os, runpy, sys
atexit.register(os.kill, os.getpid(), {int(number)})
sys.argv[1:] = ["--version"]
runpy.run_module("hpcgnn", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("hpcgnn ")
