"""Helpers that call verbs on the ranks of a test, and check errors of verbs run as jobs."""

from __future__ import annotations

import argparse
import subprocess
from types import ModuleType

from hpcgnn.comm.communicator import Communicator


def call(comm: Communicator, verb: ModuleType, *arguments: object) -> None:
    """Call a verb on the ranks of this test, as the command line does."""
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args(list(map(str, arguments))), comm) == 0
    comm.barrier()


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("hpcgnn: error: ")]
    assert result.returncode == 2 and len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0], lines[0]
