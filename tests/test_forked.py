"""A fork of a process that has loaded the libraries takes the place of a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import forked

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="there are no forks")


def test_it_has_what_whoever_starts_it_has(loaded_python, tmp_path):
    code = (
        "import os, sys; print('torch' in sys.modules, 'hpcgnn' in sys.modules, sys.argv,"
        " os.getcwd(), os.environ['GIVEN'], sys.stdin.read(), file=sys.stderr); sys.exit(3)"
    )
    done = subprocess.run(
        [loaded_python, "-c", code, "one", "two"],
        cwd=tmp_path,
        env=os.environ | {"GIVEN": "here"},
        input="words",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr == f"True False ['-c', 'one', 'two'] {tmp_path} here words\n"


def test_a_script_and_a_module(loaded_python, tmp_path):
    (tmp_path / "beside.py").write_text("print(__name__)")
    (tmp_path / "script.py").write_text("import beside, sys; print(__name__, sys.argv[1:])")
    for command in (["script.py"], ["-m", "script"]):
        done = subprocess.run(
            [loaded_python, *command, "x"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout == "beside\n__main__ ['x']\n", done.stderr
    given = "import sys; print(sys.argv)"
    done = subprocess.run([loaded_python, "-", "x"], input=given, capture_output=True, text=True)
    assert done.stdout == "['-', 'x']\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_as_it_is_ended(loaded_python, tmp_path, number):
    """By itself, and with whoever started it."""
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    assert subprocess.run([loaded_python, "-c", code]).returncode == -number
    file = tmp_path / "process"
    code = f"import os, time; open({str(file)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(60)"
    with subprocess.Popen([loaded_python, "-c", code]) as started:
        while not file.exists() or not file.read_text().endswith(" "):
            time.sleep(0.01)
        fork = Path("/proc", file.read_text().strip())
        assert fork.exists()
        started.send_signal(number)
    end = time.monotonic() + 10
    while fork.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert started.returncode == -number and not fork.exists()


def test_a_fork_ends_with_its_server():
    """However that ends; a fork that is left keeps stdout open."""
    code = (
        "import os, runpy, sys, time; ready, wire = os.pipe(); "
        "os.fork() and (os.read(ready, 1), os._exit(0)); "
        "runpy.run_path(sys.argv[1])['end_with_parent'](); os.write(wire, b'.'); time.sleep(60)"
    )
    command = [sys.executable, "-IS", "-c", code, str(forked.__file__)]
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=30).returncode == 0
