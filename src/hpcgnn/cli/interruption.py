"""What is said when Ctrl-C or another signal ends a verb."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcgnn.comm.launcher import launched
from hpcgnn.comm.liveness.termination import Terminated
from hpcgnn.errors import warn


@contextmanager
def interruption_said(verb: str | None, args: argparse.Namespace | None) -> Iterator[None]:
    """Say in one line what a signal interrupted, and what became of its output.

    Ctrl-C reaches all ranks, and rank 0 says it here. Another signal may reach any of them, so that
    the end of the job says which.
    """
    out = getattr(args, "out", None) or getattr(args, "output", None)
    before = _state(out)
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        end = _of_run(args) if verb == "train" else _of_output(out, before)
        if isinstance(error, Terminated):
            error.what, error.result = f"{verb} was ended", end
        elif launched()[0] == 0:
            warn(f"hpcgnn: {verb} was interrupted: {end}")
        raise


def _state(out: str | Path | None) -> tuple[int, int] | None:
    """Return what changes if the file is replaced; None if there is none."""
    if out is None:
        return None
    with suppress(OSError, ValueError):
        found = Path(out).stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _of_output(out: str | Path | None, before: tuple[int, int] | None) -> str:
    if out is None:
        return "no file was replaced"
    if _state(out) != before:
        return f"{out} is complete"
    return f"{out} was not {'written' if before is None else 'replaced'}"


def _of_run(args: argparse.Namespace | None) -> str:
    folder = getattr(args, "run_dir", None)
    if folder is not None and any(Path(folder, "checkpoints").glob("*.h5")):
        return f"`hpcgnn train --resume {folder}` continues from its last checkpoint"
    return "it has no checkpoint yet"
