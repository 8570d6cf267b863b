"""What is said when Ctrl-C or another signal ends a verb."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from hpcgnn.cli.interruption import interruption_said

TERMINATED = """
import os, signal, sys
from hpcgnn.cli import generate, main
generate._write = lambda args, comm, *rest: (
    os.kill(os.getpid(), signal.SIGTERM) if comm.rank else comm.barrier()
)
sys.exit(main.main(["generate", "rmat", sys.argv[1], "--nodes", "99", "--degree", "4", "-q"]))
"""


def said(capfd, verb: str, args: Namespace, *, writes: Path | None = None) -> str:
    capfd.readouterr()
    with pytest.raises(KeyboardInterrupt), interruption_said(verb, args):
        if writes is not None:
            new = writes.with_suffix(".tmp")
            new.write_text("new")
            new.replace(writes)
        raise KeyboardInterrupt
    return capfd.readouterr().err


def test_the_line_says_what_became_of_the_output(tmp_path, capfd, monkeypatch):
    file = tmp_path / "g.h5"
    name = f"hpcgnn: convert was interrupted: {file}"
    args = Namespace(out=file)
    assert said(capfd, "convert", args) == f"{name} was not written\n"
    assert said(capfd, "convert", args, writes=file) == f"{name} is complete\n"
    assert said(capfd, "convert", args) == f"{name} was not replaced\n"
    assert said(capfd, "convert", args, writes=file) == f"{name} is complete\n"
    assert said(capfd, "predict", Namespace(output=str(file))).endswith("g.h5 was not replaced\n")
    line = "hpcgnn: partition was interrupted: no file was replaced\n"
    assert said(capfd, "partition", Namespace(out=None)) == line
    monkeypatch.setattr("hpcgnn.cli.interruption.launched", lambda: (1, 2))
    assert said(capfd, "convert", args) == ""


def test_other_signals_are_named_with_the_rank_and_the_output(tmp_path):
    """By the rank that one reached, here the last of two."""
    program = tmp_path / "program.py"
    program.write_text(TERMINATED)
    done = subprocess.run(
        ["mpiexec", "-n", "2", sys.executable, program, tmp_path / "g.h5"],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),  # without the variables that MPI has set in C
    )
    assert done.returncode == 128 + signal.SIGTERM
    line = f"hpcgnn: error: rank 1: generate was ended by SIGTERM: {tmp_path / 'g.h5'} was not"
    assert done.stderr == f"{line} written\n"


def test_training_says_how_to_continue(tmp_path, capfd):
    args = Namespace(run_dir=tmp_path)
    line = "hpcgnn: train was interrupted: "
    assert said(capfd, "train", args) == f"{line}it has no checkpoint yet\n"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.h5").touch()
    resume = f"`hpcgnn train --resume {tmp_path}` continues from its last checkpoint\n"
    assert said(capfd, "train", args) == line + resume
