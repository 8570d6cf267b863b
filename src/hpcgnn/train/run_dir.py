"""The run directory: made, and held so that no other job trains in it meanwhile."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcgnn.comm.communicator import Communicator
from hpcgnn.errors import HpcgnnError, InputError, OutputError
from hpcgnn.storage import atomic
from hpcgnn.train.config import Config

PATIENCE = 60.0  # seconds: a requeued job may start before the last rank of the old one is gone
_POLL = 0.5


@contextmanager
def held(
    run_dir: Path,
    comm: Communicator,
    *,
    fresh: bool = False,
    patience: float = PATIENCE,
) -> Iterator[None]:
    """Make the directory, and keep other jobs out for the block; collective.

    File systems without locks keep nobody out.

    Args:
        fresh: the run starts anew, which a directory with checkpoints of another is not for.

    Raises:
        InputError: another job still trains there after `patience` seconds, or has.
        OutputError: it can't be made.
    """
    error: HpcgnnError | None = None
    descriptor = None
    if comm.rank == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run_dir, os.O_RDONLY)
            _lock(descriptor, run_dir, patience)
            if fresh:
                _refuse_checkpoints(run_dir)
        except OSError as caught:
            error = OutputError(f"can't be written: {caught.strerror}", file=run_dir)
        except InputError as caught:
            error = caught
    try:
        comm.agree(error, where="run directory")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_config(run_dir: Path, comm: Communicator, config: Config) -> None:
    """Write `config.json`, once the run is known to be a possible one; collective.

    Raises:
        OutputError: it can't be written.
    """
    path, error = run_dir / "config.json", None
    if comm.rank == 0:
        try:
            with atomic.claim(path) as temporary:
                text = json.dumps(json.loads(config.to_json()), indent=2)
                temporary.write_text(text + "\n", encoding="utf-8")
                atomic.publish(temporary, path)
        except OSError as caught:
            error = OutputError(f"can't be written: {caught.strerror}", file=path)
        except OutputError as caught:
            error = caught
    comm.agree(error, where="config.json")


def _refuse_checkpoints(run_dir: Path) -> None:
    if any((run_dir / "checkpoints").glob("*.h5")):
        raise InputError(
            "holds the checkpoints of a run: --resume goes on with it; choose another --run-dir "
            "for a new one, or remove this one",
            file=run_dir,
        )


def _lock(descriptor: int, run_dir: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return
            if time.monotonic() > end:
                raise InputError(
                    "another job trains in this run directory: wait for it, cancel it, or choose "
                    "another --run-dir",
                    file=run_dir,
                ) from None
            time.sleep(_POLL)
        else:
            return
